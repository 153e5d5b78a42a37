"""A real S3 server (moto's, a process of its own) for tests of storage."""

from __future__ import annotations

import contextlib
import os
import sys

import pytest
from processes import free_port, start_server

BUCKET = "results"


class S3Server:
    """`uri('runs/first')` is a place in its bucket."""

    def __init__(self, **environment: str):
        self._environment = environment
        self.port = free_port()
        self.process = None
        self.client = None

    def start(self):
        self.process = start_server(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
            f"http://127.0.0.1:{self.port}/moto-api/",
            env={**os.environ, **self._environment},
        )
        return self

    def stop(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def uri(self, path, bucket=BUCKET):
        options = f"endpoint_override=127.0.0.1:{self.port}&scheme=http&region=us-east-1"
        return f"s3://{bucket}/{path}?{options}"

    def make_bucket(self):
        import boto3

        client = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.port}",
            region_name="us-east-1",
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
        )
        client.create_bucket(Bucket=BUCKET)
        self.client = client

    def objects(self, prefix):
        """What the server itself says is there: key -> content, folders' markers left out."""
        found = self.client.list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}/").get("Contents", [])
        return {
            entry["Key"].removeprefix(f"{prefix}/"): self.client.get_object(
                Bucket=BUCKET, Key=entry["Key"]
            )["Body"].read()
            for entry in found
            if not entry["Key"].endswith("/")
        }


@contextlib.contextmanager
def s3_server(**environment):
    """Skips the test where the server's package is not installed."""
    for package in ("moto", "flask", "flask_cors", "boto3"):
        pytest.importorskip(package, reason="needs moto[s3], flask and flask-cors (the extra dev)")
    server = S3Server(**environment)
    try:
        yield server.start()
    finally:
        server.stop()
