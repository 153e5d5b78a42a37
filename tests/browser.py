"""Debian's Chromium, headless, for looking at pages as a user does."""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import wait_for

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="needs Debian's packages chromium, chromium-driver"
)
# Where screenshots are kept; unset: nowhere.
SCREENSHOTS = os.environ.get("TOOLAGENT_SCREENSHOTS")
_FLAGS = """--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run
    --disable-background-networking --disable-component-update --disable-sync
    --disable-dev-shm-usage --force-device-scale-factor=1 --hide-scrollbars"""


class Browser:
    """A page, and what is to be read on it; `driver` is Selenium's."""

    def __init__(self, driver: Any):
        self.driver = driver

    def text(self) -> str:
        return self.run("return document.body.innerText")

    def run(self, script: str, *arguments: Any) -> Any:
        """What a piece of JavaScript returns on the page."""
        return self.driver.execute_script(script, *arguments)

    def open(self, url: str, *expected: str) -> str:
        """The page's text, once all that is expected stands on it."""
        self.driver.get("about:blank")  # so that a new fragment is a new page
        self.driver.get(url)

        def there() -> str:
            text = self.text()
            return text if all(words in text for words in expected) else ""

        try:
            return wait_for(there)
        except AssertionError:
            raise AssertionError(f"{url} lacks some of {expected}:\n{self.text()}") from None

    def resize(self, width: int, height: int) -> None:
        """Lays the page out in a window of this size; narrow ones as a phone does."""
        self.command(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
        )

    def prefer(self, *, dark: bool = False, calm: bool = False) -> None:
        """What the user has set: dark mode, and no motion."""
        colours, motion = "dark" if dark else "light", "reduce" if calm else "no-preference"
        self.command(
            "Emulation.setEmulatedMedia",
            features=[
                {"name": "prefers-color-scheme", "value": colours},
                {"name": "prefers-reduced-motion", "value": motion},
            ],
        )

    def console(self) -> list[dict[str, Any]]:
        """The entries in the browser's console since the last call."""
        return self.driver.get_log("browser")

    def screenshot(self, file: Path, whole: bool = False) -> None:
        """PNG of what the window shows, or of the whole page however long."""
        options: dict[str, Any] = {"format": "png", "captureBeyondViewport": whole}
        if whole:
            size = self.run("return [innerWidth, document.documentElement.scrollHeight]")
            options["clip"] = {"x": 0, "y": 0, "width": size[0], "height": size[1], "scale": 1}
        file.write_bytes(
            base64.b64decode(self.command("Page.captureScreenshot", **options)["data"])
        )

    def keep(self, name: str) -> None:
        """A screenshot in the folder that the environment names, if it names one."""
        if SCREENSHOTS:
            Path(SCREENSHOTS).mkdir(parents=True, exist_ok=True)
            self.screenshot(Path(SCREENSHOTS) / f"{name}.png")

    def pdf(self, file: Path) -> None:
        data = self.command("Page.printToPDF", printBackground=False)["data"]
        file.write_bytes(base64.b64decode(data))

    def command(self, name: str, **parameters: Any) -> Any:
        """A command of Chromium's DevTools protocol."""
        return self.driver.execute_cdp_cmd(name, parameters)


@contextlib.contextmanager
def browser(width: int = 1200, height: int = 800, log_requests: bool = False) -> Iterator[Browser]:
    """A window of this size; with `log_requests`, `driver.get_log("performance")` has them."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for flag in (*_FLAGS.split(), f"--window-size={width},{height}"):
        options.add_argument(flag)
    options.binary_location = str(CHROMIUM)
    logged = {"browser": "ALL"} | ({"performance": "ALL"} if log_requests else {})
    options.set_capability("goog:loggingPrefs", logged)
    # A driver that is named is not looked for, and nothing is downloaded.
    driver = webdriver.Chrome(options, webdriver.ChromeService(str(DRIVER)))
    try:
        driver.set_page_load_timeout(60)
        yield Browser(driver)
    finally:
        driver.quit()
