"""The report's tables as HTML: results, cells set aside, settings and provenance, one of each a study."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence

from headrace.lab.report.text import count, decimals, figure, unbroken, without_shared_start
from headrace.lab.report.view import (
    COMPLETED,
    FAILED,
    RESULT_COLUMNS,
    SERVER_COLUMNS,
    SIMULATED_COLUMNS,
    CellView,
    Metric,
    SimulatedView,
    StudyView,
)

esc = html.escape
_REQUESTS = (COMPLETED, FAILED)
_ROLE_SHORT = {"on": "on", "off": "off", "unset": "–"}


def results(view: StudyView) -> str:
    """Every cell with every figure; missing figures are a dash.  Columns sort when the script runs."""
    columns = [metric for metric in RESULT_COLUMNS if _worth_a_column(metric, view.cells)]
    place = ("budget", "tokens") if view.factor in ("max_num_batched_tokens", "") else (view.factor, "")
    heads = [("cell", ""), ("status", ""), ("chunked", ""), ("runs", ""), place]
    heads += [(metric.short, metric.unit) for metric in columns]
    head = "".join(
        f'<th scope="col"><button type="button" class="sort">{esc(name)}'
        f"{f'<span>{esc(unit)}</span>' if unit else ''}</button></th>"
        for name, unit in heads
    )
    places = {metric.key: _decimals(metric, view.cells) for metric in columns}
    names = without_shared_start([cell.name for cell in view.cells])
    body = "".join(_result_row(cell, name, places) for cell, name in zip(view.cells, names, strict=True))
    caption = count(len(view.cells), "cell")
    for metric in _REQUESTS:
        if metric not in columns and (said := _in_all(metric, view.cells)):
            caption += f"; {said}"
    if any(cell.n_runs > 1 for cell in view.cells):
        caption += "; with repeats: mean and, below it, lowest to highest"
    long_names = " long" if max(map(len, names), default=0) > 20 else ""
    return _table(view, f"results sortable{long_names}", caption, head, body) + _server(view)


def _server(view: StudyView) -> str:
    """What the server counted in each measured cell; nothing where none counts."""
    columns = [metric for metric in SERVER_COLUMNS if _worth_a_column(metric, view.cells)]
    cells = [cell for cell in view.cells if any(metric.key in cell.values for metric in columns)]
    if not cells:
        return ""
    head = '<th scope="col">cell</th>' + "".join(
        f'<th scope="col" title="{esc(metric.label)}">{esc(metric.short)} {esc(metric.unit)}</th>' for metric in columns
    )
    body = "".join(
        f'<tr><th scope="row">{_link(cell)}</th>'
        + "".join(
            f'<td class="num">{figure(cell.values[metric.key].mean) if metric.key in cell.values else "–"}</td>'
            for metric in columns
        )
        + "</tr>"
        for cell in cells
    )
    return _table(view, "server", "By the server's own count (means over the runs)", head, body)


def _worth_a_column(metric: Metric, cells: Sequence[CellView]) -> bool:
    """Some cell has it; how many requests were completed and failed, only where that is not the same in all."""
    return any(metric.key in cell.values for cell in cells) and not (metric in _REQUESTS and _in_all(metric, cells))


def _in_all(metric: Metric, cells: Sequence[CellView]) -> str:
    """`120 requests completed in every run` where all runs have one figure; else nothing."""
    measured = [cell for cell in cells if cell.n_runs]
    if not all(metric.key in cell.values for cell in measured):
        return ""
    found = {run for cell in measured for run in cell.values[metric.key].runs}
    return f"{figure(found.pop())} requests {metric.short} in every run" if len(found) == 1 else ""


def _decimals(metric: Metric, cells: Sequence[CellView]) -> int:
    values = [cell.values[metric.key] for cell in cells if metric.key in cell.values]
    return decimals(bound for value in values for bound in (value.low, value.mean, value.high))


def _result_row(cell: CellView, name: str, places: Mapping[str, int]) -> str:
    x = f"{cell.x:.10g}" if cell.x is not None else "–"
    values = []
    for key, places_ in places.items():
        value = cell.values.get(key)
        if value is None:
            values.append('<td class="num" data-v="">–</td>')
            continue
        low, middle, high = (f"{number:,.{places_}f}" for number in (value.low, value.mean, value.high))
        spread = "" if value.low == value.high else f"<small>{low}–{high}</small>"
        values.append(f'<td class="num" data-v="{value.mean!r}" title="{value.mean!r}">{middle}{spread}</td>')
    return (
        f'<tr id="{cell.anchor}" class="{cell.status.value}"><th scope="row"{_full(cell, name)}>{unbroken(name)}</th>'
        f"<td>{_badge(cell)}</td>"
        f"<td>{_ROLE_SHORT[cell.role]}</td>"
        f'<td class="num" data-v="{cell.n_runs}">{cell.n_runs}</td>'
        f'<td class="num" data-v="{_sort_value(cell.x)}">{x}</td>{"".join(values)}</tr>'
    )


def _full(cell: CellView, name: str) -> str:
    return "" if name == cell.name else f' title="{esc(cell.name)}"'


def _link(cell: CellView) -> str:
    return f'<a class="cell" href="#{cell.anchor}">{unbroken(cell.name)}</a>'


def _sort_value(x: float | None) -> str:
    """As JavaScript's Number() reads it; empty sorts last."""
    return "" if x is None else "Infinity" if x == math.inf else repr(x)


def _badge(cell: CellView) -> str:
    return f'<span class="badge {cell.status.value}">{esc(cell.status_label)}</span>'


def simulated(view: StudyView) -> str:
    """Measured against simulated, by cell; nothing where the study was not simulated."""
    if not view.simulated_words:
        return ""
    title = f"Measured against simulated: {view.simulated_words}"
    if not view.simulated:
        return _table(view, "", title, "", "")
    columns = [metric for metric in SIMULATED_COLUMNS if any(metric.key in row.values for row in view.simulated)]
    head = '<th scope="col">cell</th>' + "".join(
        f'<th scope="col">{esc(metric.short)}<span>{esc(metric.unit)}, measured / simulated</span></th>'
        for metric in columns
    )
    body = "".join(
        f'<tr><th scope="row">{_simulated_name(row)}</th>'
        f"{''.join(_simulated_cell(row, metric) for metric in columns)}</tr>"
        for row in view.simulated
    )
    return _table(view, "simulated", title, head, body)


def _simulated_name(row: SimulatedView) -> str:
    name = unbroken(row.cell)
    name = f'<a href="#{row.anchor}">{name}</a>' if row.anchor else name
    return f"{name} <small>calibration</small>" if row.calibration else name


def _simulated_cell(row: SimulatedView, metric: Metric) -> str:
    if metric.key not in row.values:
        return '<td class="num">–</td>'
    measured, simulated, error, inside = row.values[metric.key]
    outside = "" if inside else ", outside its interval"
    return f'<td class="num">{figure(measured)} / {figure(simulated)}<small>{error:+.1%}{outside}</small></td>'


def unplanned(view: StudyView) -> str:
    """Cells that are illegal, failed, degraded, substituted, not reached or not comparable, with rule and reason."""
    if not view.unplanned:
        return _table(view, "", "Every cell was measured as planned." if view.cells else "No cells.", "", "")
    names = ("cell", "status", "rule", "why", "changed settings (wanted → used)")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    body = "".join(
        f'<tr><th scope="row">{_link(cell)}</th><td>{_badge(cell)}</td>'
        f"<td>{esc(cell.rule) or '–'}</td>"
        f'<td class="prose">{unbroken(cell.reason or cell.left_out) or "no reason recorded"}</td>'
        f'<td class="prose">{unbroken(cell.substituted) or "–"}</td></tr>'
        for cell in view.unplanned
    )
    return _table(view, "unplanned", f"{len(view.unplanned)} of {count(len(view.cells), 'cell')}", head, body)


def settings(view: StudyView) -> str:
    """What differs between cells as a table; what all share, once above it."""
    shared = _pairs(view.common)
    head = '<th scope="col">cell</th>' + "".join(f'<th scope="col">{esc(name)}</th>' for name in view.varying)
    body = "".join(
        f'<tr><th scope="row">{_link(cell)}</th>'
        + "".join(f"<td>{unbroken(cell.settings.get(name, '–'))}</td>" for name in view.varying)
        + "</tr>"
        for cell in view.cells
    )
    above = f'<p class="label">The same in every cell</p>{shared}' if shared else ""
    return _table(view, "settings", "Settings in force, by cell", head, body, above)


def provenance(view: StudyView) -> str:
    """Facts of the study, the sources of its runs and their warnings."""
    facts = _pairs(view.facts) or '<p class="none">The study states no facts about its environment.</p>'
    head = "".join(
        f'<th scope="col">{name}</th>' for name in ("cell", "sources", "warnings", "settings that no flag stated")
    )
    body = "".join(
        f'<tr><th scope="row">{_link(cell)}</th>'
        f'<td class="prose">{_lines(cell.sources)}</td><td class="prose">{_lines(cell.warnings)}</td>'
        f'<td class="prose">{_lines(cell.implied)}</td></tr>'
        for cell in view.cells
        if cell.sources or cell.warnings or cell.implied
    )
    return _table(view, "sources", "Where the figures come from", head if body else "", body, facts)


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    rows = "".join(f"<div><dt>{unbroken(name)}</dt><dd>{unbroken(text)}</dd></div>" for name, text in pairs)
    return f'<dl class="pairs">{rows}</dl>' if rows else ""


def _lines(texts: Iterable[str]) -> str:
    return "<br>".join(unbroken(text) for text in texts) or "–"


def _table(view: StudyView, classes: str, caption: str, head: str, body: str, above: str = "") -> str:
    table = (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{esc(view.title)}: {esc(caption)}">'
        f'<table class="{classes}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        if head
        else ""
    )
    return (
        f'<div class="study-table"><h3 class="study">{esc(view.title)}</h3>{above}'
        f'<p class="label">{esc(caption)}</p>{table}</div>'
    )
