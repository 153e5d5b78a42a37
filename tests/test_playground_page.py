"""The playground's page, end to end, in headless Chromium against a real server."""

import contextlib
import json
import time

import pytest
from browser import browser, needs_browser

pytest.importorskip("selenium", reason="needs the extra dev")
pytest.importorskip("axe_core_python", reason="needs the extra dev")

from axe_core_python.selenium import Axe
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

pytestmark = [
    pytest.mark.full,
    pytest.mark.timeout(1200),
    needs_browser,
]


class Page:
    """What a person sees of the page, and does on it."""

    def __init__(self, chrome, url):
        self.chrome, self.driver, self.url = chrome, chrome.driver, url

    def open(self, path="/"):
        self.driver.get(self.url + path)
        if path == "/":
            self.wait(lambda: self.all(".lane"))

    def one(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def wait(self, condition, seconds=30):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            # The page may draw anew what is being looked at.
            with contextlib.suppress(StaleElementReferenceException, IndexError):
                if value := condition():
                    return value
            time.sleep(0.05)
        raise AssertionError(f"not within {seconds} s; the page says '{self.text('#fault')}'")

    def text(self, selector):
        return self.one(selector).text

    def play(self, digits, other=None):
        self.one("#posed").clear()
        self.one("#posed").send_keys(digits)
        if other is not None:
            self.driver.execute_script(
                "document.getElementById('other').value = arguments[0]", other
            )
        self.another(lambda: self.one("#problem .primary").click())

    def another(self, ask):
        """Does what has another problem played, and waits for it."""
        before = self.all(".lane")
        ask()
        self.wait(lambda: self.all(".lane") and self.all(".lane") != before)

    def press(self, *keys):
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)

    def program(self, lane=0):
        chips = self.all(".lane")[lane].find_elements(By.CSS_SELECTOR, ".chip")
        return [chip.get_property("textContent") for chip in chips]

    def registers(self, lane=0):
        rows = self.all(".lane")[lane].find_elements(By.CSS_SELECTOR, ".registers div")
        return dict(row.text.split("\n") for row in rows)

    def bar(self, token, lane=0):
        return next(
            bar
            for bar in self.all(".lane")[lane].find_elements(By.CSS_SELECTOR, ".token")
            if bar.get_attribute("aria-label").startswith(f"{token},")
        )

    def choose(self, token, lane=0):
        number = len(self.all(".lane"))
        self.bar(token, lane).click()
        self.wait(lambda: len(self.all(".lane")) == number + 1)

    def faults(self):
        """What the browser's console has against the page."""
        return [entry for entry in self.chrome.console() if entry["level"] == "SEVERE"]

    def requested(self):
        """The URLs of all requests since the last call."""
        messages = [
            json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")
        ]
        return [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]


@pytest.fixture(scope="module")
def chrome():
    with browser(log_requests=True) as chromium:
        yield chromium


@pytest.fixture
def page(chrome, playground):
    chrome.resize(1200, 900)
    chrome.prefer(calm=True)  # it does not play by itself
    result = Page(chrome, playground.url)
    result.open()
    result.faults(), result.requested()  # whatever came before is not this test's
    result.open()
    yield result
    assert result.faults() == []


def test_a_program_is_watched_forth_and_back(page):
    page.play("3 4 5 6 7", other="after")
    page.press(Keys.HOME)
    assert page.text("#program-title") == "3*4+5-6*7 = -25"
    assert page.program(1) == ["MUL", "ADD", "STO", "MUL", "RCL", "SUB", "ANS"]
    seen = []
    for step in range(1, 8):
        assert page.text("#place") == f"step {step} of 7"
        seen.append(page.registers(1)["acc"])
        chosen = page.all(".lane")[1].find_elements(By.CSS_SELECTOR, ".token[aria-pressed=true]")
        assert [bar.get_attribute("aria-label").split(",")[0] for bar in chosen] == [
            page.program(1)[step - 1]
        ]
        page.one("#forward").click()
    assert seen == ["12", "17", "empty", "42", "17", "-25", "-25"]
    assert page.text("#place") == "step 7 of 7"  # behind the end there is nothing
    assert "answers -25 = 3*4+5-6*7: right" in page.all(".verdict")[1].text
    page.one("#back").click()
    assert page.text("#place") == "step 6 of 7"
    page.one("#first").click()
    assert page.text("#place") == "step 1 of 7" and page.registers(1)["acc"] == "12"


def test_the_bars_are_the_probabilities(page, playground):
    from test_serve import ask

    page.play("3 4 5 6 7", other="")
    page.press(Keys.HOME)
    _, answer = ask(playground, digits=[3, 4, 5, 6, 7], model="before")
    bars = page.all(".token")
    assert len(bars) == 18
    for bar, p in zip(bars, answer["steps"][0]["probabilities"], strict=True):
        shown = float(bar.get_attribute("aria-label").split(", ")[1].rstrip("%"))
        assert shown == pytest.approx(100 * p, abs=0.06)
        width = bar.find_element(By.CSS_SELECTOR, ".fill").size["width"]
        track = bar.find_element(By.CSS_SELECTOR, ".track").size["width"]
        assert width / track == pytest.approx(p, abs=0.02)


def test_another_token_leads_to_a_branch_beside_the_original(page, playground):
    from test_serve import ask

    page.play("3 4 5 6 7", other="after")
    page.press(Keys.HOME, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    original = page.program(1)
    page.choose("SUB", lane=1)
    _, expected = ask(
        playground, digits=[3, 4, 5, 6, 7], model="after", given=["MUL", "ADD", "SUB"]
    )
    titles = [lane.find_element(By.CSS_SELECTOR, "h3").text for lane in page.all(".lane")]
    assert titles == ["before", "after", "SUB at step 3, after"]
    assert page.program(1) == original and page.program(2) == expected["program"]
    page.one("#last").click()
    assert (
        page.all(".verdict")[2]
        .text.removeprefix("✗ ")
        .removeprefix("✓ ")
        .startswith(expected["verdict"])
    )
    page.one(".close").click()
    page.wait(lambda: len(page.all(".lane")) == 2)
    for token in ("0", "1", "2", "3"):  # no more than three branches, the oldest goes
        page.press(Keys.HOME)
        page.bar(token, 0).click()
        page.wait(
            lambda token=token: any(
                token == page.program(n)[0] for n in range(len(page.all(".lane")))
            )
        )
    assert len(page.all(".lane")) == 5


def test_it_plays_when_it_is_opened_and_pauses(page):
    page.chrome.prefer()
    page.open()
    assert page.text("#program-title") == "3*4+5-6*7 = -25" and len(page.all(".lane")) == 2
    assert page.text("#play") == "Pause"
    page.wait(
        lambda: page.text("#place").startswith("step ") and "step 1 " not in page.text("#place")
    )
    page.one("#play").click()
    stopped = page.text("#place")
    time.sleep(1.5)
    assert page.text("#place") == stopped and page.text("#play") == "Play"
    page.one("#play").click()
    page.wait(lambda: page.text("#place") == "step 7 of 7" and page.text("#play") == "Play")


def test_the_keyboard_is_enough(page):
    """From the address bar: tab to everything, play, step, and choose another token."""
    page.driver.execute_script("document.activeElement.blur()")
    names = []
    for _ in range(8):
        page.press(Keys.TAB)
        active = page.driver.switch_to.active_element
        names.append(active.get_attribute("id") or active.text)
        outline = page.driver.execute_script(
            "return getComputedStyle(document.activeElement).outlineStyle"
        )
        assert outline != "none", names
        if names[-1] == "other":
            break
    assert names == ["Skip to the program", "API", "stage", "posed", "model", "other"]
    page.another(lambda: page.one("#posed").send_keys(Keys.ENTER))
    page.driver.execute_script("document.activeElement.blur()")
    page.press(Keys.HOME)
    assert page.text("#place") == "step 1 of 7"
    page.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
    assert page.text("#place") == "step 2 of 7"
    page.press(" ")
    assert page.text("#play") == "Pause"
    page.press(" ")
    assert page.text("#play") == "Play"
    page.press(Keys.HOME)
    for _ in range(60):
        page.press(Keys.TAB)
        if (page.driver.switch_to.active_element.get_attribute("aria-label") or "").startswith(
            "ADD,"
        ):
            break
    page.press(Keys.ENTER)
    page.wait(lambda: len(page.all(".lane")) == 3)
    focused = page.driver.switch_to.active_element.get_attribute("aria-label")
    assert focused.startswith("ADD,")  # where the new branch begins
    # In a text field the arrows move the cursor and step nothing.
    place = page.text("#place")
    page.one("#posed").send_keys(Keys.ARROW_LEFT, Keys.HOME, " ")
    assert page.text("#place") == place


def test_a_screen_reader_is_told_each_step(page):
    page.play("3 4 5 6 7", other="")
    page.press(Keys.HOME)
    said = page.one("#said")
    assert said.get_attribute("aria-live") == "polite"
    assert "Step 1 of" in said.get_property("textContent")
    assert "acc 12" in said.get_property("textContent")
    page.press(Keys.END)
    assert "answers" in said.get_property("textContent")
    assert said.size["width"] <= 1  # for ears only


@pytest.mark.parametrize(
    "digits, reason",
    [
        ("3 4", "2 numbers"),
        ("3 4 x 6 7", "'x' is no digit"),
        ("3 4 5 6 77", "'77' is no digit; expected 5 digits"),
        ("9*8/7", "'9*8/7' is not a*b+c or a*b+c-d or a*b+c-d*e with a digit for each letter"),
    ],
)
def test_what_was_typed_wrong_is_said_in_the_page(page, digits, reason):
    page.one("#posed").clear()
    page.one("#posed").send_keys(digits, Keys.ENTER)
    page.wait(lambda: reason in page.text("#fault"))
    assert page.one("#posed").get_attribute("aria-invalid") == "true"
    page.chrome.console()  # Chromium notes every 4xx; here it is meant
    page.play("3 4 5 6 7")
    assert page.text("#fault") == ""


def test_a_text_from_outside_never_becomes_markup(page):
    page.one("#posed").send_keys(" <img src=x onerror=alert(1)>", Keys.ENTER)
    page.wait(lambda: "is no digit" in page.text("#fault"))
    assert page.all("img") == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1200, 360])
def test_nothing_is_inaccessible_and_nothing_sticks_out(page, width, dark):
    """axe-core's rules, and no sideways scrolling, at the widths of a desk and of a phone."""
    page.chrome.resize(width, 780)
    page.chrome.prefer(dark=dark, calm=True)
    for path in ("/", "/api.html"):
        page.open(path)
        if path == "/":
            page.play("3 4 5 6 7", other="after")
            page.press(Keys.HOME, Keys.ARROW_RIGHT)
            if width < 640:
                page.one(".more").click()
            page.choose("STO")
            page.press(Keys.END)
        else:
            page.wait(lambda: page.all("table"))
        found = Axe().run(page.driver)["violations"]
        assert [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in found] == []
        inner, scroll = page.driver.execute_script(
            "return [innerWidth, document.documentElement.scrollWidth]"
        )
        assert scroll <= inner == width


def test_an_expression_that_has_the_form_of_a_formula_is_its_digits(page):
    page.play(" 9*8 + 7-6·5", other="")
    assert page.text("#program-title") == "9*8+7-6*5 = 49"
    page.play("9*8+7", other="")  # of another stage
    assert page.text("#program-title") == "9*8+7 = 79"
    assert page.one("#stage").get_attribute("value") == "0"
    assert page.text("#posed-hint") == "3 digits, 0 to 9, or 3*4+5"


def test_a_phone_shows_the_likeliest_tokens_and_all_if_asked(page, playground):
    from test_serve import ask

    page.chrome.resize(390, 844)
    page.play("3 4 5 6 7", other="")
    page.press(Keys.HOME)
    _, answer = ask(playground, digits=[3, 4, 5, 6, 7], model="before")
    probabilities = answer["steps"][0]["probabilities"]
    bars = page.all(".token")
    shown = [p for bar, p in zip(bars, probabilities, strict=True) if bar.is_displayed()]
    assert sorted(shown, reverse=True) == sorted(probabilities, reverse=True)[:6]
    (more,) = page.all(".more")
    assert more.text == "All 18 tokens"
    more.click()
    assert all(bar.is_displayed() for bar in bars) and more.text == "The 6 likeliest tokens"
    page.choose("EOS")  # also on the branch
    assert all(bar.is_displayed() for bar in page.all(".token"))
    page.all(".more")[1].click()
    shown = [bar.get_attribute("aria-pressed") for bar in page.all(".token") if bar.is_displayed()]
    assert len(shown) == 12 and shown.count("true") == 2  # what was chosen is among the six
    page.chrome.resize(1200, 900)
    assert all(bar.is_displayed() for bar in page.all(".token"))
    assert not any(button.is_displayed() for button in page.all(".more"))


def test_nothing_is_fetched_from_elsewhere(page):
    page.play("3 4 5 6 7", other="after")
    page.open("/api.html")
    page.wait(lambda: page.all("table"))
    urls = page.requested()
    assert any(url.endswith("/api/play") for url in urls)
    elsewhere = [url for url in urls if not url.startswith((page.url, "data:"))]
    assert elsewhere == []


def test_random_problems_are_played(page):
    page.another(lambda: page.one("#random").click())
    digits = page.one("#posed").get_attribute("value").split()
    assert len(digits) == 5 and all(digit.isdecimal() for digit in digits)
    a, b, c, d, e = map(int, digits)
    assert page.text("#program-title") == f"{a}*{b}+{c}-{d}*{e} = {a * b + c - d * e}"
