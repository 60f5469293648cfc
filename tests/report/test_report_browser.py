"""The report in headless Chromium from Debian, driven by selenium."""

import json
import re
import shutil

import pytest
from report_runs import run_of

from imagenet_jax.report import make

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="no Chromium here: apt-get install chromium chromium-driver",
)

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
SECTIONS = (
    "results", "curves", "throughput", "config", "provenance", "classes", "calibration",
    "confusions", "mistakes", "filters", "features", "gradcam",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.set_script_timeout(60)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """One run with 10 classes, one with 1,000, and two runs."""
    directory = tmp_path_factory.mktemp("reports")
    long_name = "configs/" + "a_very_long_name_of_a_class_or_a_file_without_any_space" * 3
    runs = {
        "one": [run_of()],
        "many": [run_of(classes=1000)],
        "two": [run_of("a", 0), run_of(long_name, 1)],
    }
    for name, some in runs.items():
        (directory / f"{name}.html").write_text(make.make_page(some), encoding="utf-8")
    return directory


@pytest.fixture
def show(browser, pages):
    """show(page, width, scheme) opens a page from disk and returns the browser."""

    def open_page(name, width=1200, scheme="light"):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        browser.get_log("browser")
        browser.get_log("performance")
        browser.get((pages / f"{name}.html").as_uri())
        return browser

    return open_page


@pytest.mark.parametrize("name", ["one", "many", "two"])
def test_opens_without_errors_or_requests_and_shows_every_section(show, name):
    browser = show(name)
    heights = browser.execute_script(
        "return [...document.querySelectorAll('main > section')]"
        ".map(s => [s.id, s.offsetHeight, s.querySelector('h2').offsetHeight])"
    )
    assert [key for key, *_ in heights] == list(SECTIONS)
    assert all(height > title > 0 for _, height, title in heights), heights
    browser.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    wait_for(browser, "[...document.querySelectorAll('.chart')].every(c => c.data)")
    drawn = browser.execute_script(
        "return [...document.querySelectorAll('.chart')].map(c =>"
        " [c.id, c.offsetHeight, c.querySelectorAll('path.js-line, .bars path, .hm image').length])"
    )
    assert len(drawn) >= 8
    assert all(height > 100 and marks > 0 for _, height, marks in drawn), drawn
    broken = browser.execute_script(
        "document.querySelectorAll('img').forEach(i => { i.loading = 'eager'; });"
        "return [...document.images].filter(i => !i.src.startsWith('data:')).length"
    )
    assert broken == 0
    assert browser.get_log("browser") == []
    assert requests_of(browser) == {(browser.current_url)}


def requests_of(browser):
    """Return the URLs that the page requested, except those of data inside it."""
    found = set()
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            found.add(message["params"]["request"]["url"])
    return {url for url in found if not url.startswith(("data:", "blob:"))}


def move(browser, *steps):
    """Send mouse events (kind, x, y)."""
    for kind, x, y in steps:
        pressed = {"button": "none" if kind == "mouseMoved" else "left", "clickCount": 1}
        browser.execute_cdp_cmd(
            "Input.dispatchMouseEvent", {"type": kind, "x": x, "y": y} | pressed
        )


def plot_area(browser, chart):
    """Scroll a chart into view and return (left, top, width, height) of its plot area."""
    box = browser.execute_script(
        f"const c = document.querySelector('#chart-{chart}');"
        "c.scrollIntoView({block: 'center', behavior: 'instant'});"
        "const b = c.querySelector('.nsewdrag').getBoundingClientRect();"
        "return [b.left, b.top, b.width, b.height]"
    )
    assert box[2] > 100
    return box


def wait_for(browser, condition):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 20).until(lambda b: b.execute_script(f"return {condition}"))


def test_hovering_shows_the_values(show):
    browser = show("one")
    left, top, width, height = plot_area(browser, "grad_norm")
    middle = left + width / 2, top + height / 2
    move(browser, ("mouseMoved", middle[0] - 5, middle[1]), ("mouseMoved", *middle))
    hover = "[...document.querySelectorAll('#chart-grad_norm .hoverlayer text')]"
    wait_for(browser, f"{hover}.length")
    text = " ".join(browser.execute_script(f"return {hover}.map(t => t.textContent)"))
    values = {m["step"]: m["grad_norm"] for m in run_of().metrics if m["split"] == "train"}
    step = int(re.search(r"step ([\d,]+)", text)[1].replace(",", ""))
    assert f"{values[step]:.4g}".rstrip("0") in text
    assert 100 < step < 300


def test_dragging_zooms_every_curve(show):
    browser = show("one")
    axis = "document.querySelector('#chart-{}')._fullLayout.xaxis.range"
    before = browser.execute_script(f"return {axis.format('loss')}")
    left, top, width, height = plot_area(browser, "loss")
    y = top + height / 2
    move(
        browser,
        ("mousePressed", left + 0.3 * width, y),
        ("mouseMoved", left + 0.5 * width, y),
        ("mouseMoved", left + 0.6 * width, y),
        ("mouseReleased", left + 0.6 * width, y),
    )
    wait_for(browser, f"{axis.format('loss')}[0] > {before[0]} + 1")
    low, high = browser.execute_script(f"return {axis.format('loss')}")
    span = before[1] - before[0]
    assert low == pytest.approx(before[0] + 0.3 * span, abs=0.05 * span)
    assert high == pytest.approx(before[0] + 0.6 * span, abs=0.05 * span)
    wait_for(browser, f"Math.abs({axis.format('grad_norm')}[0] - {low}) < 1e-9")
    browser.execute_script("Plotly.relayout('chart-loss', {'xaxis.autorange': true})")
    wait_for(browser, f"Math.abs({axis.format('grad_norm')}[0] - {before[0]}) < 0.1")


def test_the_legend_hides_a_run_and_its_button_changes_the_axis(show):
    browser = show("two")
    traces = "document.querySelector('#chart-loss').data.length"
    before = browser.execute_script(f"return {traces}")
    browser.execute_script("document.querySelector('[data-run=\"1\"]').click()")
    wait_for(browser, f"{traces} === {before // 2}")
    browser.execute_script("document.querySelector('[data-logarithmic=loss]').click()")
    wait_for(browser, "document.querySelector('#chart-loss')._fullLayout.yaxis.type === 'linear'")


def test_a_thousand_classes_can_be_sorted_and_searched(show):
    browser = show("many")
    rows = "[...document.querySelectorAll('#classes-0 tbody tr')]"
    assert browser.execute_script(f"return {rows}.length") == 1000
    recall = f"return {rows}.map(r => parseFloat(r.cells[2].textContent))"
    click = "document.querySelectorAll('#classes-0 thead button')[2].click();"
    assert (values := browser.execute_script(click + recall)) == sorted(values)
    assert browser.execute_script(click + recall) == sorted(values, reverse=True)
    browser.execute_script(
        "const box = document.querySelector('[data-filter=classes-0]'); box.value = 'kind 77';"
        "box.dispatchEvent(new Event('input'))"
    )
    shown = browser.execute_script(
        f"return {rows}.filter(r => r.offsetHeight).map(r => [r.cells[0], r.cells[5]]"
        ".map(c => c.textContent))"
    )
    assert {name for name, _ in shown} >= {f"kind {i}" for i in (77, *range(770, 780))}
    assert all("kind 77" in name + taken for name, taken in shown)
    height = "return document.querySelector('#classes .tall').offsetHeight"
    assert browser.execute_script(height) < 600  # it has its own scroll bar


@pytest.mark.parametrize("width", [360, 390])
@pytest.mark.parametrize("name", ["one", "many", "two"])
def test_a_phone_needs_no_sideways_scrolling_and_shows_top1(show, name, width):
    browser = show(name, width=width)
    browser.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    inside, total, wide = browser.execute_script(
        f"const wide = [...document.querySelectorAll('main *')].filter(e =>"
        f" e.getBoundingClientRect().right > {width + 1} && !e.closest('.scroll')"
        " && !e.closest('svg'));"
        "const page = document.documentElement;"
        "return [page.clientWidth, page.scrollWidth, wide.map(e => e.outerHTML.slice(0, 120))]"
    )
    assert width - 20 <= inside <= width  # a scroll bar takes some
    assert total == inside, wide
    assert wide == []
    results = browser.execute_script(
        "return [...document.querySelectorAll('#results table')].flatMap(t =>"
        " [...t.rows].flatMap(r => [...r.cells]))"
        ".filter(c => /^top-1|^[\\d.]+%$/.test(c.textContent) && c.cellIndex <= 2)"
        ".map(c => [c.textContent, c.getBoundingClientRect()])"
        ".map(([text, box]) => [text, box.left, box.right])"
    )
    assert sum(text == "top-1" for text, *_ in results) == (2 if name == "two" else 1)
    assert all(0 <= left < right <= inside for _, left, right in results), results


CONTRASTS = """
const linear = c => { c /= 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
const parse = text => (text.match(/[\\d.]+/g) || []).map(Number);
const opaque = c => c.length >= 3 && (c.length === 3 || c[3] === 1);
const behind = e => {
  for (; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor);
    if (opaque(c)) return c;
  }
  return [255, 255, 255];
};
const own = e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
const found = [];
for (const e of document.querySelectorAll('body *')) {
  if (!own(e) || !e.getClientRects().length || e.closest('script, style')) continue;
  if (e.closest('.cell, .heatmap-label')) continue;  // plotly chooses these by their cell
  const style = getComputedStyle(e);
  const ink = parse(e.closest('svg') ? style.fill : style.color);
  const [a, b] = [light(ink), light(behind(e))].sort((p, q) => q - p);
  found.push([(a + 0.05) / (b + 0.05), e.tagName, e.textContent.slice(0, 40)]);
}
return found;
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_lines_contrast_with_the_background(show, scheme):
    browser = show("two", scheme=scheme)
    dark = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", dark)[:3])) < 150) == (scheme == "dark")
    browser.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    found = browser.execute_script(CONTRASTS)
    assert sum(tag == "text" for _, tag, _ in found) > 30  # of charts as well
    low = [entry for entry in found if entry[0] < 4.5]  # WCAG 2.2, 1.4.3
    assert low == []
    lines = browser.execute_script(
        CONTRASTS.split("const own")[0] + "const paper = light(behind(document.body));"
        "return report.charts.flatMap(c => (element(c).data || [])"
        ".filter(t => t.line && t.hoverinfo !== 'skip').map(t => {"
        " const probe = document.body.appendChild(document.createElement('i'));"
        " probe.style.color = t.line.color;"
        " const ink = light(parse(getComputedStyle(probe).color)); probe.remove();"
        " const [a, b] = [ink, paper].sort((p, q) => q - p); return (a + 0.05) / (b + 0.05); }))"
    )
    assert len(lines) > 10
    assert min(lines) >= 3  # WCAG 2.2, 1.4.11


def test_charts_follow_a_change_to_the_dark_scheme(show):
    browser = show("one")
    ink = "document.querySelector('#chart-loss').layout.font.color"
    before = browser.execute_script(f"return {ink}")
    feature = {"name": "prefers-color-scheme", "value": "dark"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    wait_for(browser, f"{ink} !== '{before}'")
