"""Takes the README's pictures of the playground from a server that runs.

python tests/playground_images.py URL [FOLDER]     # FOLDER: .github/images
"""

from __future__ import annotations

import base64
import sys
import time
from pathlib import Path

from playground import browser
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

PICTURES = (("playground.png", 1120, False, True), ("playground_phone.png", 360, True, False))


def main() -> None:
    """Compares the first two agents at step 3, and on a phone, dark, one of them alone."""
    url = sys.argv[1]
    folder = Path(sys.argv[2] if len(sys.argv) > 2 else ".github/images")
    for name, width, dark, compare in PICTURES:
        with browser(width, 1000, dark) as driver:
            driver.get(url)
            _until(lambda driver=driver: driver.find_element(By.ID, "posed").get_attribute("value"))
            if not compare:
                driver.execute_script(
                    "document.getElementById('model').selectedIndex = 1;"
                    "document.getElementById('other').value = ''"
                )
            driver.find_element(By.CSS_SELECTOR, "#problem .primary").click()
            _until(lambda driver=driver: driver.find_elements(By.CSS_SELECTOR, ".lane"))
            driver.execute_script("document.activeElement.blur()")
            body = driver.find_element(By.TAG_NAME, "body")
            body.send_keys(Keys.HOME, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
            time.sleep(0.5)
            size = driver.execute_script(
                "return [innerWidth, document.documentElement.scrollHeight]"
            )
            clip = {"x": 0, "y": 0, "width": size[0], "height": size[1], "scale": 1}
            picture = driver.execute_cdp_cmd(
                "Page.captureScreenshot",
                {"format": "png", "captureBeyondViewport": True, "clip": clip},
            )
            (folder / name).write_bytes(base64.b64decode(picture["data"]))


def _until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit("the page does not answer")
        time.sleep(0.05)


if __name__ == "__main__":
    main()
