"""Debian's Chromium, headless, for looking at pages as a user does."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from monitored import wait_for

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
# Where screenshots are kept; unset: nowhere.
SCREENSHOTS = os.environ.get("TOOLAGENT_SCREENSHOTS")
_FLAGS = """--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run
    --disable-background-networking --disable-component-update --disable-sync
    --force-device-scale-factor=1 --hide-scrollbars"""


class Browser:
    """A page, and what is to be read on it."""

    def __init__(self, driver: Any):
        self.driver = driver

    def text(self) -> str:
        return self.driver.execute_script("return document.body.innerText")

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

    def screenshot(self, name: str) -> None:
        if SCREENSHOTS:
            Path(SCREENSHOTS).mkdir(parents=True, exist_ok=True)
            self.driver.save_screenshot(str(Path(SCREENSHOTS) / f"{name}.png"))


@contextlib.contextmanager
def browser(width: int = 1200, height: int = 800) -> Iterator[Browser]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for flag in (*_FLAGS.split(), f"--window-size={width},{height}"):
        options.add_argument(flag)
    options.binary_location = str(CHROMIUM)
    # A driver that is named is not looked for, and nothing is downloaded.
    driver = webdriver.Chrome(options, webdriver.ChromeService(str(DRIVER)))
    try:
        driver.set_page_load_timeout(60)
        yield Browser(driver)
    finally:
        driver.quit()
