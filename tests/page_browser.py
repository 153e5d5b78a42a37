"""A page in headless Chromium, through chromedriver's own HTTP interface (W3C WebDriver)."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--hide-scrollbars"),
)


class Browser:
    """Chromium with one page; a context manager."""

    def __init__(self, home: Path):
        driver = shutil.which("chromedriver")
        chromium = shutil.which("chromium") or shutil.which("chromium-browser")
        if driver is None or chromium is None:
            pytest.skip("needs chromium and chromedriver")
        self._chromium, self._home = chromium, home
        self._process = subprocess.Popen(
            [driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        port = None
        for line in self._process.stdout:
            if "successfully on port" in line:
                port = line.rsplit("port", 1)[1].strip(" .\n")
                break
        self._base = f"http://127.0.0.1:{port}"
        self._session = ""

    def __enter__(self) -> Browser:
        flags = [*FLAGS, f"--user-data-dir={self._home}"]
        wanted = {
            "goog:chromeOptions": {"binary": self._chromium, "args": flags},
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        made = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"/session/{made['sessionId']}"
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            if self._session:
                self._call("DELETE", self._session)
        finally:
            self._process.terminate()
            self._process.wait(20)

    def open(self, page: Path, width: int, height: int = 800, dark: bool = False) -> None:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[scheme])
        self.command(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
        )
        self._call("POST", f"{self._session}/url", {"url": page.resolve().as_uri()})

    def run(self, script: str) -> object:
        body = {"script": script, "args": []}
        return self._call("POST", f"{self._session}/execute/sync", body)

    def errors(self) -> list[str]:
        """What the console says."""
        body = {"type": "browser"}
        return [entry["message"] for entry in self._call("POST", f"{self._session}/se/log", body)]

    def screenshot(self, file: Path, whole: bool = False) -> None:
        data = self.command("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        file.write_bytes(base64.b64decode(data))

    def pdf(self, file: Path) -> None:
        data = self.command("Page.printToPDF", printBackground=False)["data"]
        file.write_bytes(base64.b64decode(data))

    def command(self, name: str, **parameters: object) -> dict:
        body = {"cmd": name, "params": parameters}
        return self._call("POST", f"{self._session}/goog/cdp/execute", body)

    def _call(self, method: str, path: str, body: dict | None = None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._base + path, data, method=method)
        request.add_header("Content-Type", "application/json")
        for _ in range(20):
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    return json.load(answer)["value"]
            except urllib.error.HTTPError as error:
                raise AssertionError(error.read().decode()[:2000]) from None
            except ConnectionError:
                time.sleep(0.2)
        raise AssertionError("chromedriver does not answer")
