"""The report in a real browser, without a network: Debian's chromium with chromium-driver, driven by selenium."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from xaibench.cli import main
from xaibench.report import terminal

from .test_report import HOSTILE, score_file

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
DESKTOP, PHONE = (1280, 900), (360, 740)


@pytest.fixture(scope="module")
def page(ran, tmp_path_factory) -> Path:
    """The report of a small run, and beside it one of methods with markup in their names."""
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for stream in ("stdout", "stderr"):
            patch.setattr(getattr(terminal, stream), "file", getattr(sys, stream))
        for method in (HOSTILE, "random"):
            score_file(method, [0.5, 0.7, 0.4], "</script><script>alert(2)</script>")
        assert main(["report", "--images", "0", "--out", "hostile"]) == 0
        source = ("--results", str(ran / "results"), "--cache", str(ran / "cache"))
        assert main(["report", *source, "--images", "3", "--out", "report"]) == 0
    return folder / "report" / "index.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Chromium without a window. Skips, with the reason, where it is absent."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is absent (pip install selenium)")
    if not (CHROMIUM and DRIVER):
        pytest.skip("chromium is absent (apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for option in (*OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def opened(browser, page: Path, size=DESKTOP, **media: str):
    """The page, freshly loaded in a window of this size under these media features."""
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    kind = media.pop("media", "")
    features = [{"name": name.replace("_", "-"), "value": value} for name, value in media.items()]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": kind, "features": features})
    browser.get(page.as_uri())
    return browser


def column(browser, number: int) -> list[str]:
    """The text of a column of the rows that are shown."""
    script = "return [...document.querySelectorAll('table.rows tbody tr:not([hidden]):not(.detail)')].map(row => "
    return browser.execute_script(script + f"row.cells[{number}].textContent.trim())")


def find(browser, selector: str):
    return browser.find_element("css selector", selector)


def test_the_page_runs_without_an_error_and_asks_nothing_of_the_network(browser, page):
    for each in (page, page.parent.parent / "hostile" / "index.html"):
        browser.get_log("performance")  # what was before
        opened(browser, each)
        assert browser.get_log("browser") == []
        events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        urls = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        assert each.as_uri() in urls
        assert {url.partition(":")[0] for url in urls} <= {"file", "data"}
        assert [url for url in urls if url.startswith("file") and url != each.as_uri()] == []


def test_a_click_or_a_key_sorts(browser, page):
    opened(browser, page)
    button = find(browser, "table.rows thead th:nth-child(5) button")
    head = find(browser, "table.rows thead th:nth-child(5)")
    assert button.text == "value" and head.get_attribute("aria-sort") == "none"
    button.click()
    rising = [float(text.replace("−", "-")) for text in column(browser, 4)]
    assert head.get_attribute("aria-sort") == "ascending" and rising == sorted(rising) and len(set(rising)) == 3
    button.send_keys("\n")
    falling = [float(text.replace("−", "-")) for text in column(browser, 4)]
    assert head.get_attribute("aria-sort") == "descending" and falling == rising[::-1]
    find(browser, "table.rows thead th:nth-child(2) button").click()
    assert head.get_attribute("aria-sort") == "none"
    assert column(browser, 1) == sorted(column(browser, 1))


def test_filters_hide_rows(browser, page):
    opened(browser, page)
    count = find(browser, "output[name=count]")
    assert set(column(browser, 2)) == {"degradation"} and count.text == "3 of 12 rows"
    find(browser, "select[name=metric] option:first-child").click()
    assert set(column(browser, 2)) == {"degradation", "pointing_game"} and count.text == "6 of 12 rows"
    find(browser, "input[name=further]").click()
    assert {"morf ↓", "lerf ↑"} <= set(column(browser, 3)) and count.text == "12 of 12 rows"
    find(browser, "input[name=search]").send_keys("GRADCAM point")
    assert (
        column(browser, 1) == ["gradcam"] and column(browser, 2) == ["pointing_game"] and count.text == "1 of 12 rows"
    )


def test_a_row_says_where_it_comes_from(browser, page):
    opened(browser, page)
    button = find(browser, "table.rows tbody tr:nth-child(1) .more button")
    button.click()
    said = find(browser, "tr.detail").text
    assert button.get_attribute("aria-expanded") == "true"
    assert "xaibench run method=" in said and "numbers_key" in said and "torch " in said
    links = [link.get_attribute("href") for link in browser.find_elements("css selector", "tr.detail a")]
    assert [Path(link).suffix for link in links] == [".csv", ".json", ".h5"]
    button.click()
    assert not find(browser, "tr.detail").is_displayed()


def test_markup_in_a_name_stays_text(browser, page):
    opened(browser, page.parent.parent / "hostile" / "index.html")
    assert HOSTILE in [text.removesuffix(" control") for text in column(browser, 1)]
    find(browser, "table.rows tbody tr:nth-child(1) .more button").click()
    assert browser.execute_script("return document.querySelectorAll('[onerror], main script').length") == 0
    assert browser.get_log("browser") == []  # an alert would be refused with an error


@pytest.mark.parametrize("name", ["report", "hostile"])
def test_a_phone_scrolls_tables_not_the_page(browser, page, name):
    opened(browser, page.parent.parent / name / "index.html", PHONE)
    width, window = browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert width == window == PHONE[0]
    wide = "return [...document.querySelectorAll('.scroll')].some(box => box.scrollWidth > box.clientWidth)"
    assert browser.execute_script(wide)


def test_schemes_and_print(browser, page):
    ground = "return getComputedStyle(document.body).backgroundColor"
    shown = "return getComputedStyle(document.querySelector('.filters')).display"
    stroke = "return getComputedStyle(document.querySelector('figure svg text')).fill"
    light = [opened(browser, page, prefers_color_scheme="light").execute_script(script) for script in (ground, stroke)]
    dark = [opened(browser, page, prefers_color_scheme="dark").execute_script(script) for script in (ground, stroke)]
    assert light[0] == "rgb(255, 255, 255)" and dark[0] != light[0] and dark[1] != light[1]
    opened(browser, page, media="print")
    assert browser.execute_script(shown) == "none"
    assert browser.execute_script(ground) == "rgb(255, 255, 255)"
