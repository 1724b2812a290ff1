"""Study views -> one self-contained HTML page.

Rules that the tests hold it to: no request leaves the page; the content policy names the hash of every script and
style; data stands in inert JSON elements; foreign text passes `esc` (or, in charts, `charts.label`); the same input
gives the same bytes.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from headrace.errors import ConfigError
from headrace.lab.report import charts, tables
from headrace.lab.report.panels import Dashboard, Panel, dashboards
from headrace.lab.report.svg import key_symbol, panel_svg
from headrace.lab.report.text import count, unbroken, with_unit
from headrace.lab.report.view import FindingView, StudyView

esc = html.escape
_LEGEND_LINES = 8
_TOPICS = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "step-time": "step time"}
_KEYS = (
    ("on", "on", "chunked prefill on"),
    ("off", "off", "chunked prefill off"),
    ("unset", "unset", "chunked prefill not stated"),
)
_MARK_KEYS = (
    ("illegal", "illegal: a rule forbids it, not measured"),
    ("failed", "failed"),
    ("degraded", "not comparable: served less, or another workload"),
    ("pending", "not run yet"),
    ("missing", "metric not in the results"),
)


def page_html(views: Sequence[StudyView]) -> str:
    """The whole page; the first study is the report's own, the others stand beside it."""
    boards = dashboards(views)
    figures = {panel.id: charts.plotly_figure(panel) for study in boards for board in study for panel in board.panels}
    script, style, plotly = _asset("page.js"), _asset("page.css"), plotly_script()
    title = views[0].title if views else "report"
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src {_csp_hash(script)} {_csp_hash(plotly)}",
            # The second hash is that of an empty style element: Plotly fills its own through the CSSOM.
            f"style-src {_csp_hash(style)} {_csp_hash('')}",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    parts = {
        "policy": policy,
        "title": esc(f"{title} · headrace"),
        "style": style,
        "script": script,
        # Plotly adds a map library's style sheet when no element has its id; an empty one with that id stops it.
        "style_guards": "".join(f'<style id="{name}"></style>' for name in _style_guards(plotly)),
        "columns": str(min(len(views), 3)),
        "header": _header(views),
        "findings": "".join(_findings(view, len(views) > 1) for view in views),
        "legend": _legend(boards),
        "charts": _charts(views, boards),
        "unplanned": "".join(map(tables.unplanned, views)),
        "results": "".join([*map(tables.results, views), *map(tables.simulated, views)]),
        "settings": "".join(map(tables.settings, views)),
        "provenance": "".join(map(tables.provenance, views)),
        "figures": inert_json({"figures": figures, "dark": charts.DARK}),
        "plotly": _packed(plotly),
    }
    # One pass over the template: text that was put in is never looked at again.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _asset("page.html"))


def inert_json(value: Any) -> str:
    """JSON for a `<script type="application/json">` element: nothing in it can end the element or a JS line."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


@cache
def plotly_script() -> str:
    """Plotly's script from its installed wheel.  Only the file is read: importing the package is slow."""
    spec = find_spec("plotly")
    places = list(spec.submodule_search_locations or ()) if spec else []
    for place in places:
        path = Path(place) / "package_data" / "plotly.min.js"
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise ConfigError("the chart script is missing: install the package 'plotly' (its wheel carries plotly.min.js)")


@cache
def _packed(script: str) -> str:
    return base64.b64encode(gzip.compress(script.encode(), 9, mtime=0)).decode()


def _style_guards(script: str) -> list[str]:
    return sorted(set(re.findall(r'getElementById\("([0-9a-f]{64})"\)', script)))


def _csp_hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@cache
def _asset(name: str) -> str:
    return (files("headrace.lab.report") / "assets" / name).read_text(encoding="utf-8")


def _header(views: Sequence[StudyView]) -> str:
    if not views:
        return ""
    heads = []
    for index, view in enumerate(views):
        level = "h1" if index == 0 else "h2"
        chips = "".join(
            f"<li><span>{esc(name)}</span> {unbroken(text)}</li>" for name, text in view.common if len(text) <= 80
        )
        reasons = "".join(f"<li>{unbroken(reason)}</li>" for reason in view.banner.reasons)
        heads.append(
            f'<div class="head" id="{view.anchor}"><p class="kind">{esc(view.kind)}'
            f"{'' if index == 0 else ' · beside'}</p><{level}>{esc(view.title)}</{level}>"
            f'<p class="ran">{count(len(view.cells), "cell")}, {count(sum(c.n_runs for c in view.cells), "run")}</p>'
            f'<ul class="chips">{chips}</ul>'
            f'<div class="banner {view.banner.level}" role="note"><p>{esc(view.banner.headline)}</p>'
            f"<ul>{reasons}</ul></div></div>"
        )
    return "".join(heads)


def _findings(view: StudyView, named: bool) -> str:
    """The headline, the best cells, then the other claims; caveats that several share stand once, below."""
    tally = Counter(caveat for finding in view.findings for caveat in finding.caveats)
    shared = [caveat for caveat, times in tally.items() if times >= 3]
    name = f'<h3 class="study">{esc(view.title)}</h3>' if named else ""
    lead = [finding for finding in view.findings if finding.id == "headline"]
    cards = "".join(_finding(finding, view.anchor, shared) for finding in view.findings if finding not in lead)
    none = "" if view.findings else '<p class="none">No finding could be derived from this study.</p>'
    notes = "".join(f'<li id="{view.anchor}n{place}">{unbroken(text)}</li>' for place, text in enumerate(shared, 1))
    foot = f'<div class="shared"><p>Caveats that several findings share</p><ol>{notes}</ol></div>' if notes else ""
    first = "".join(_finding(finding, view.anchor, shared, lead=True) for finding in lead)
    return f'<div class="findings">{name}{first}{_best(view)}{cards}{none}{foot}</div>'


def _best(view: StudyView) -> str:
    """The best cell of each headline metric and those near it, as a small table before the claims."""
    if not view.best:
        return ""
    rows = "".join(
        f"<tr><th scope=row>{esc(best.metric.label)}</th>"
        f"<td>{_cell_link(best.cell.name, best.cell.anchor)}</td>"
        f"<td>{with_unit(best.value.mean, best.metric.unit)}<small>{esc(best.value.sample_words)}</small></td>"
        f"<td>{' '.join(_cell_link(cell.name, cell.anchor) for cell in best.tied) or 'none'}"
        f"<small>{esc(best.tie_words)}</small></td></tr>"
        for best in view.best
    )
    return (
        '<div class="scroll"><table class="best"><thead><tr><th scope=col>metric</th><th scope=col>best cell</th>'
        f"<th scope=col>value</th><th scope=col>tied with it</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _finding(finding: FindingView, anchor: str, shared: Sequence[str], lead: bool = False) -> str:
    caveats = "".join(f"<li>{unbroken(caveat)}</li>" for caveat in finding.caveats if caveat not in shared)
    links = ", ".join(
        f'<a href="#{anchor}n{place}">{place}</a>' for place, text in enumerate(shared, 1) if text in finding.caveats
    )
    notes = f'<span class="notes">caveats {links}</span>' if links else ""
    numbers = "".join(
        f"<tr><th scope=row>{unbroken(name)}</th><td>{unbroken(text)}</td></tr>" for name, text in finding.numbers
    )
    details = (
        f"<details><summary>{count(len(finding.numbers), 'number')}</summary>"
        f'<div class="scroll"><table class="numbers"><tbody>{numbers}</tbody></table></div></details>'
        if numbers
        else ""
    )
    return (
        f'<article class="finding{" lead" if lead else ""}">'
        f'<p class="topic">{"in short" if lead else esc(_TOPICS.get(finding.topic, finding.topic))}</p>'
        f'<div><p class="claim">{unbroken(finding.claim)}</p>'
        f"{f'<ul class=caveats>{caveats}</ul>' if caveats else ''}"
        f'<div class="basis">{notes}{details}{_basis_cells(finding)}</div></div></article>'
    )


def _basis_cells(finding: FindingView) -> str:
    """Links to the cells that a claim rests on; folded away where they would be longer than the claim."""
    if not finding.cells:
        return ""
    links = "".join(f"<li>{_cell_link(name, anchor)}</li>" for name, anchor in finding.cells)
    listed = f'<ul class="cells">{links}</ul>'
    if sum(len(name) for name, _ in finding.cells) <= 160:
        return listed
    return f"<details><summary>{count(len(finding.cells), 'cell')}</summary>{listed}</details>"


def _cell_link(name: str, anchor: str | None) -> str:
    return (
        f'<a class="cell" href="#{anchor}">{unbroken(name)}</a>'
        if anchor
        else f'<span class="cell">{unbroken(name)}</span>'
    )


def _legend(boards: Sequence[Sequence[Dashboard]]) -> str:
    panels = [panel for study in boards for board in study for panel in board.panels]
    lines = {(series.role, series.dash, series.label) for panel in panels for series in panel.series}
    roles = {role for role, _, _ in lines} | {mark.role for panel in panels for mark in panel.marks}
    marks = {mark.status for panel in panels for mark in panel.marks}
    items = [f"<li>{key_symbol(shape, css)}{label}</li>" for shape, css, label in _KEYS if shape in roles]
    if any(point.changed for panel in panels for series in panel.series for point in series.points):
        items.append(f"<li>{key_symbol('on', 'on open')}hollow: other settings changed too</li>")
    items += [f"<li>{key_symbol(shape, f'mark {shape}')}{label}</li>" for shape, label in _MARK_KEYS if shape in marks]
    if any(dash for _, dash, _ in lines):
        shown = sorted(lines)[:_LEGEND_LINES]
        items += [
            f'<li><svg class="dash" viewBox="0 0 30 10" aria-hidden="true">'
            f'<path class="line {role} dash{dash % 5}" d="M1 5H29"/></svg>{esc(label)}</li>'
            for role, dash, label in shown
        ]
        if len(lines) > len(shown):
            items.append(f"<li>and {count(len(lines) - len(shown), 'more line')}: point at a symbol</li>")
    return f'<ul class="legend">{"".join(items)}</ul>'


def _charts(views: Sequence[StudyView], boards: Sequence[Sequence[Dashboard]]) -> str:
    parts = []
    for same in zip(*boards, strict=True):
        rows = "".join(
            f'<div class="row">{f"<h4>{esc(view.title)}</h4>" if len(views) > 1 else ""}'
            f'<div class="panels">{"".join(map(_panel, board.panels))}</div></div>'
            for view, board in zip(views, same, strict=True)
        )
        parts.append(
            f'<section class="board"><h3>{esc(same[0].title)}</h3><p class="about">{esc(same[0].about)}</p>'
            f'<div class="rows">{rows}</div></section>'
        )
    return "".join(parts)


def _panel(panel: Panel) -> str:
    return (
        f'<figure class="panel"><figcaption>{esc(panel.title)} <span class="unit">{esc(panel.unit)}</span>'
        f'<span class="note">{esc(panel.note)}</span></figcaption>'
        f'<div class="plot" id="{panel.id}" role="img" aria-label="{esc(panel.alt)}">{panel_svg(panel)}</div></figure>'
    )
