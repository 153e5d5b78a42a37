"""Takes the README's pictures of the playground from a server with an agent of `toolcall`.

python tests/playground_images.py URL [FOLDER]     # FOLDER: .github/images
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from browser import Browser, browser
from processes import wait_for
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

PROBLEM = {"posed": "B*C", "posed-database": "19 83 86 8 1 48 2 2"}
TOLD, STEP = "4 5", 9  # in place of the first answer; the step that is shown


def main() -> None:
    """An agent beside itself where it is told another answer; and it alone on a phone, dark."""
    url = sys.argv[1]
    folder = Path(sys.argv[2] if len(sys.argv) > 2 else ".github/images")
    for name, width, dark in (("playground.png", 1120, False), ("playground_phone.png", 360, True)):
        with browser(width, 1000) as page:
            page.resize(width, 1000)
            page.prefer(dark=dark, calm=True)
            page.driver.get(url)
            _wait_for_lanes(page, 1)
            _pose(page)
            if not dark:
                _tell(page)
            page.run("document.activeElement.blur()")
            body = page.driver.find_element(By.TAG_NAME, "body")
            body.send_keys(Keys.HOME, *[Keys.ARROW_RIGHT] * (STEP - 1))
            time.sleep(0.5)  # the bars move
            page.run("scrollTo(0, 0)")
            page.screenshot(folder / name, whole=dark)


def _pose(page: Browser) -> None:
    before = page.driver.find_elements(By.CSS_SELECTOR, ".lane")
    for identifier, text in PROBLEM.items():
        field = page.driver.find_element(By.ID, identifier)
        field.clear()
        field.send_keys(text)
    field.send_keys(Keys.ENTER)
    wait_for(lambda: page.driver.find_elements(By.CSS_SELECTOR, ".lane") != before)


def _tell(page: Browser) -> None:
    page.driver.find_element(By.CSS_SELECTOR, ".answer").send_keys(Keys.ENTER)
    field = page.driver.switch_to.active_element
    field.clear()
    field.send_keys(TOLD, Keys.ENTER)
    _wait_for_lanes(page, 2)


def _wait_for_lanes(page: Browser, count: int) -> None:
    wait_for(lambda: len(page.driver.find_elements(By.CSS_SELECTOR, ".lane")) == count)


if __name__ == "__main__":
    main()
