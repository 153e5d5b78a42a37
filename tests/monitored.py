"""A live run of `python -m toolagent.run` with a Prometheus that scrapes it, for tests of both."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from processes import ROOT, ended, free_port, start_logged, wait_for

MONITORING = ROOT / "cluster" / "monitoring"


def json_of(url: str, token: str | None = None) -> Any:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as reply:
        return json.load(reply)


class Prometheus:
    """The HTTP API of a Prometheus."""

    def __init__(self, port: int):
        self.url = f"http://127.0.0.1:{port}"

    def get(self, path: str, **parameters: str) -> Any:
        query = f"?{urllib.parse.urlencode(parameters)}" if parameters else ""
        answer = json_of(f"{self.url}/api/v1/{path}{query}")
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each sample of an instant vector."""
        result = self.get("query", query=expression)["result"]
        return [(sample["metric"], float(sample["value"][1])) for sample in result]

    def value(self, expression: str) -> float | None:
        """The one sample's value, or None."""
        samples = self.query(expression)
        assert len(samples) <= 1, samples
        return samples[0][1] if samples else None


@dataclass
class LiveRun:
    """A run under way."""

    process: subprocess.Popen[bytes]
    folder: Path  # its results
    ray_folder: Path  # its Ray session's
    token: str
    dashboard: str  # URL
    prometheus: Prometheus

    def rows(self) -> list[dict[str, Any]]:
        text = (self.folder / "progress.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines(keepends=True) if line[-1] == "\n"]

    def actors(self) -> list[dict[str, Any]]:
        url = f"{self.dashboard}/api/v0/actors?detail=True"
        return json_of(url, self.token)["data"]["result"]["result"]

    def pid(self, name: str) -> int:
        """The process of the living actor with that name."""
        found = [
            a["pid"] for a in self.actors() if a["repr_name"] == name and a["state"] == "ALIVE"
        ]
        assert len(found) == 1, self.actors()
        return found[0]


@contextlib.contextmanager
def suspended(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def prometheus_of(discovery: Path, folder: Path) -> Iterator[Prometheus]:
    """Debian's Prometheus with the shipped configuration, but for the place of Ray's file and the
    intervals: a second, as Ray's in these tests."""
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(MONITORING / name) for name in config["rule_files"]]
    config["scrape_configs"][0]["file_sd_configs"] = [
        {"files": [str(discovery)], "refresh_interval": "1s"}
    ]
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    port = free_port()
    command = [
        "prometheus",
        f"--config.file={file}",
        f"--web.listen-address=127.0.0.1:{port}",
        f"--storage.tsdb.path={folder / 'series'}",
    ]
    process = start_logged(command, folder / "prometheus.log")
    with ended(process, signal.SIGTERM):
        yield Prometheus(port)


@contextlib.contextmanager
def live_run(*flags: str) -> Iterator[LiveRun]:
    """A run that goes on until the block ends, and then takes Ctrl-C and ends well."""
    # Not pytest's folder: the paths of Ray's sockets have to be short.
    folder = Path(tempfile.mkdtemp(prefix="watched-"))
    token = secrets.token_hex(32)
    (folder / "token").write_text(token)
    (folder / "token").chmod(0o600)
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | {
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "120",
        "RAY_TMPDIR": str(folder),
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_metrics_report_interval_ms": "1000",
    }
    command = [sys.executable, "-m", "toolagent.run", "--output-dir", str(folder / "calculating")]
    output = folder / "output"
    process = start_logged([*command, *flags], output, env=environment)
    try:
        with ended(process, signal.SIGINT):

            def started() -> bool:
                assert process.poll() is None, output.read_text()
                trains = (folder / "calculating" / "progress.jsonl").is_file()
                return trains and "Ray dashboard: " in output.read_text()

            wait_for(started, "the first iteration and the dashboard")
            session = (folder / "ray" / "session_latest").resolve()
            discovery = session / "prom_metrics_service_discovery.json"
            address = output.read_text().split("Ray dashboard: ")[1].split()[0]
            with prometheus_of(discovery, folder) as prometheus:
                run_folder = folder / "calculating"
                yield LiveRun(process, run_folder, session, token, address, prometheus)
        assert process.returncode == 130, output.read_text()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def lasting_cluster() -> Iterator[tuple[dict[str, str], str, Path]]:
    """A node of `ray start`: environment, address, and the file with its metrics ports."""
    folder = Path(tempfile.mkdtemp(prefix="watched-"))
    (folder / "token").write_text(secrets.token_hex(32))
    (folder / "token").chmod(0o600)
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | {
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_metrics_report_interval_ms": "1000",
    }
    port = free_port()
    command = f"""ray start --head --block --port={port} --node-ip-address=127.0.0.1 --num-cpus=2
        --dashboard-port={free_port()} --temp-dir={folder} --disable-usage-stats""".split()
    command[:1] = [sys.executable, "-m", "ray.scripts.scripts"]
    output = folder / "output"
    process = start_logged(command, output, env=environment)
    discovery = folder / "prom_metrics_service_discovery.json"
    try:
        with ended(process, signal.SIGTERM):

            def started() -> bool:
                assert process.poll() is None, output.read_text()
                return discovery.is_file()

            wait_for(started, "the cluster")
            yield environment, f"127.0.0.1:{port}", discovery
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def exported(discovery: Path) -> dict[str, float]:
    """toolagent's series at the metrics ports now: name to value, whatever the labels."""
    found = {}
    for target in json.loads(discovery.read_text())[0]["targets"]:
        with urllib.request.urlopen(f"http://{target}/metrics", timeout=10) as reply:
            for line in reply.read().decode().splitlines():
                if line.startswith("ray_toolagent_"):
                    found[line.partition("{")[0]] = float(line.rpartition(" ")[2])
    return found
