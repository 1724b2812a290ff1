"""The page in a real browser: it draws, it fetches nothing, and 50 hostile texts run nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium_pipe import BINARY, Chromium
from report_worlds import FINDING, campaign, measured, settings, study

from headrace.lab.findings.finding import Finding
from headrace.lab.records.results import Cell, CellStatus, RunResult, Study
from headrace.lab.report import write_report

pytestmark = pytest.mark.skipif(BINARY is None, reason="no chromium or chrome binary on PATH")

MARK = "document.documentElement.dataset.pwned=1"
_SHAPES = (
    "<script>{}</script>",
    "</script><script>{}</script>",
    "</title><script>{}</script>",
    "</style><script>{}</script>",
    "--><script>{}</script>",
    "<!--<script>{}",
    "]]><script>{}</script>",
    "<img src=x onerror={}>",
    '"><img src=x onerror={}>',
    "'><img src=x onerror={}>",
    "</script><img src=x onerror={}>",
    "<svg onload={}>",
    "<svg><script>{}</script></svg>",
    "<svg><animate onbegin={} attributeName=x dur=1s>",
    "<body onload={}>",
    "<iframe srcdoc='<script>parent.{}</script>'>",
    "<iframe src=javascript:parent.{}>",
    "<a href='javascript:{}'>x</a>",
    "<a href=javascript:{} autofocus onfocus={}>x</a>",
    "<b style='background:url(javascript:{})'>x</b>",
    "<details open ontoggle={}>",
    "<video><source onerror={}></video>",
    "<input autofocus onfocus={}>",
    "<marquee onstart={}>",
    "<object data=javascript:{}>",
    "<embed src=javascript:{}>",
    "<link rel=stylesheet href=javascript:{}>",
    "<meta http-equiv=refresh content='0;url=javascript:{}'>",
    "<base href=javascript:{}//>",
    "<form action=javascript:{}><button autofocus>",
    "<math><mtext><script>{}</script></mtext></math>",
    "<template><script>{}</script></template>",
    "<style>@import 'javascript:{}';</style>",
    "<img src='http://127.0.0.1:9/x' onerror={}>",
    "&lt;script&gt;{}&lt;/script&gt;",
    "&#60;img src=x onerror={}&#62;",
    "\\u003cscript\\u003e{}\\u003c/script\\u003e",
    "\u2028<script>{}</script>\u2029",
    '";{};//',
    "';{};//",
    "`${{{}}}`",
    "\\';{};//",
    "{{{{figures}}}}<script>{}</script>",
    "%{{x}}<extra><img src=x onerror={}></extra>",
    "$<img src=x onerror={}>$",
    "<br><img src=x onerror={}>",
    "<span style='color:red' onmouseover={}>x</span>",
    "<sub><img src=x onerror={}></sub>",
    "javascript:{}",
    "<SCRIPT/x>{}</SCRIPT>",
)
PAYLOADS = tuple(shape.replace("{}", MARK).replace("{{", "{").replace("}}", "}") for shape in _SHAPES)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with Chromium(tmp_path_factory.mktemp("profile"), "--window-size=1280,1000") as page:
        yield page


def complaints(browser: Chromium) -> list[dict[str, Any]]:
    """Errors and warnings in the console, exceptions, and requests for anything but the file itself."""
    found = []
    for event in browser.events:
        method, params = event["method"], event["params"]
        errors = method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning")
        spoken = method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert")
        fetched = method == "Network.requestWillBeSent" and not params["request"]["url"].startswith(("file:", "data:"))
        if errors or spoken or fetched or method == "Runtime.exceptionThrown":
            found.append(event)
    return found


def show(browser: Chromium, directory: Path, world: Study, *findings: Finding) -> Path:
    browser.events.clear()
    path = write_report(directory, [world], [findings]).html
    browser.open(path)
    return path


def test_draws_every_chart_without_a_request_or_a_complaint(browser: Chromium, tmp_path: Path) -> None:
    show(browser, tmp_path, campaign(3), FINDING)
    assert browser.evaluate("document.documentElement.dataset.charts") == "12"
    assert browser.evaluate("document.querySelectorAll('.plot .main-svg').length >= 12")
    assert browser.evaluate("document.querySelectorAll('svg.still').length") == 0  # replaced, not doubled
    assert complaints(browser) == []


def test_fifty_hostile_texts_run_nothing(browser: Chromium, tmp_path: Path) -> None:
    assert len(set(PAYLOADS)) == 50
    show(browser, tmp_path, _hostile(PAYLOADS), *(Finding(p, p, p, {p: p}, (p,), (p,)) for p in PAYLOADS))
    assert browser.evaluate("document.documentElement.dataset.charts") == "12"
    hovered = browser.evaluate(_HOVER_EVERYTHING)
    assert hovered == {"drawn": 12 * 2 * len(PAYLOADS), "markup": 0}
    assert browser.evaluate("document.documentElement.dataset.pwned") is None
    planted = "main :is(script, iframe, object, embed, link, meta, base, form, img, input, video, template, math)"
    assert browser.evaluate(f"document.querySelectorAll('{planted}').length") == 0
    assert browser.evaluate("document.querySelectorAll('.plot a').length") == 0
    assert browser.evaluate("document.title").startswith(PAYLOADS[0][:20])
    assert browser.evaluate("document.querySelector('h1').textContent") == PAYLOADS[0]
    assert complaints(browser) == []


# Plotly draws at most one hover text in 50 ms, except right after an unhover.
_HOVER_EVERYTHING = """(() => {
  const seen = { drawn: 0, markup: 0 };
  for (const plot of document.querySelectorAll(".plot")) {
    plot.data.forEach((trace, curveNumber) => trace.x.forEach((_, pointNumber) => {
      if (trace.hoverinfo === "skip") return;
      Plotly.Fx.unhover(plot);
      Plotly.Fx.hover(plot, [{ curveNumber, pointNumber }], trace.yaxis === "y2" ? "xy2" : "xy");
      seen.drawn += plot.querySelectorAll(".hoverlayer .hovertext").length;
      seen.markup += plot.querySelectorAll(".hoverlayer :is(a, [style*=bold], [style*=color], image)").length;
    }));
  }
  return seen;
})()"""


def _hostile(payloads: tuple[str, ...]) -> Study:
    """Each payload as cell name, model, setting key and value, source, warning, rule, reason, substitution and fact."""
    cells = []
    for place, text in enumerate(payloads):
        cell = measured(64 << place % 8, place % 2 == 0, 1, name=text)
        known = {**cell.settings, "model": text, text: text}
        run = RunResult(text, known, cell.runs[0].metrics, (text,))
        cells.append(Cell(text, known, CellStatus.SUBSTITUTED, (run,), text, text, {text: (text, text)}))
        status = (CellStatus.ILLEGAL, CellStatus.FAILED, CellStatus.DEGRADED)[place % 3]
        cells.append(Cell(text, known, status, (), text, text))
    return study(*cells, name=payloads[0], title=payloads[0], **{text: {text: text} for text in payloads})


def test_hover_texts_can_be_read(browser: Chromium, tmp_path: Path) -> None:
    show(browser, tmp_path, campaign())
    browser.evaluate("Plotly.Fx.hover('s0-duration-duration', [{ curveNumber: 0, pointNumber: 0 }])")
    line = "document.querySelector('#s0-duration-duration .hovertext tspan.line')"
    assert browser.evaluate(f"{line}.textContent") == "on-128"
    assert browser.evaluate(f"getComputedStyle({line}).fill") == "rgb(29, 36, 48)"


def test_charts_without_a_budget_name_cells_as_text(browser: Chromium, tmp_path: Path) -> None:
    names = ("<b>x</b>", "<a href=y>", "&lt;i&gt;")
    cells = [Cell(name, {}, runs=(RunResult(name, {}, {"duration": 3.0 + n}),)) for n, name in enumerate(names)]
    show(browser, tmp_path, study(*cells))
    ticks = browser.evaluate(
        "[...document.querySelectorAll('#s0-duration-duration .xtick text')].map((t) => t.textContent)"
    )
    assert ticks == list(names)
    assert complaints(browser) == []


def test_selecting_a_point_leads_to_its_row(browser: Chromium, tmp_path: Path) -> None:
    show(browser, tmp_path, campaign(3))
    browser.evaluate(
        "document.getElementById('s0-duration-duration')"
        ".emit('plotly_click', { points: [{ curveNumber: 1, pointNumber: 2 }] })"
    )
    assert browser.evaluate("location.hash") == "#s0c2"
    assert browser.evaluate("document.querySelector(':target th').textContent") == "on-512"


def test_a_column_sorts_by_number_and_keeps_missing_figures_last(browser: Chromium, tmp_path: Path) -> None:
    show(browser, tmp_path, campaign())
    column = "[...document.querySelectorAll('button.sort')].find((b) => b.textContent.startsWith('duration'))"
    names = "[...document.querySelectorAll('table.results tbody th')].map((cell) => cell.textContent)"
    browser.evaluate(f"{column}.click()")
    rising = browser.evaluate(names)
    browser.evaluate(f"{column}.click()")
    falling = browser.evaluate(names)
    assert rising[0] in ("on-512", "off-512") and falling[0] in ("on-128", "off-128")
    assert set(rising[-2:]) == set(falling[-2:]) == {"off-64", "on-64"}


@pytest.mark.parametrize("width", [390, 1280, 1760])
def test_nothing_sticks_out_at_this_width(browser: Chromium, tmp_path: Path, width: int) -> None:
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
    show(browser, tmp_path, campaign(3), FINDING)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert complaints(browser) == []


def test_dark_pages_have_dark_charts(browser: Chromium, tmp_path: Path) -> None:
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    show(browser, tmp_path, study(measured(64), measured(128), settings_only()))
    paper = "document.querySelector('.plot').layout.paper_bgcolor"
    assert browser.evaluate(paper) == "#171c24"
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])
    look = f"const look = () => {paper} === '#ffffff' ? done(true) : setTimeout(look, 20); look();"
    assert browser.evaluate(f"new Promise((done) => {{ {look} }})")


def settings_only() -> Cell:
    return Cell("pending", settings(256, True), CellStatus.PENDING)
