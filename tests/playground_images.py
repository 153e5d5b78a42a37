"""Takes the README's pictures of the playground from a server that runs.

python tests/playground_images.py URL [FOLDER]     # FOLDER: .github/images
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from browser import browser
from processes import wait_for
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

PICTURES = (("playground.png", 1120, False, True), ("playground_phone.png", 360, True, False))


def main() -> None:
    """Compares the first two agents at step 3, and on a phone, dark, one of them alone."""
    url = sys.argv[1]
    folder = Path(sys.argv[2] if len(sys.argv) > 2 else ".github/images")
    for name, width, dark, compare in PICTURES:
        with browser(width, 1000) as chromium:
            chromium.resize(width, 1000)
            chromium.prefer(dark=dark, calm=True)
            driver = chromium.driver
            driver.get(url)
            wait_for(
                lambda driver=driver: driver.find_element(By.ID, "posed").get_attribute("value")
            )
            if not compare:
                chromium.run(
                    "document.getElementById('model').selectedIndex = 1;"
                    "document.getElementById('other').value = ''"
                )
            driver.find_element(By.CSS_SELECTOR, "#problem .primary").click()
            wait_for(lambda driver=driver: driver.find_elements(By.CSS_SELECTOR, ".lane"))
            chromium.run("document.activeElement.blur()")
            body = driver.find_element(By.TAG_NAME, "body")
            body.send_keys(Keys.HOME, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
            time.sleep(0.5)
            chromium.screenshot(folder / name, whole=True)


if __name__ == "__main__":
    main()
