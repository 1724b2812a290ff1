"""Study view -> panels: the axes, series and marks of each small chart, as plain values.

Both drawings (Plotly and the inline SVG that shows without script) are made from these, so they cannot disagree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from headrace.lab.records.results import CellStatus
from headrace.lab.report.text import count, figure, plain
from headrace.lab.report.view import DASHBOARDS, ROLE_LABELS, CellView, Metric, StudyView

ROLES = ("on", "off", "unset")


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis: `kind` is log2, log, linear or category; range and ticks are in the data's unit, not logarithms."""

    kind: str
    title: str
    low: float
    high: float
    ticks: tuple[float, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Point:
    """One cell's value; `low`..`high` spans the repeats, `changed`: its other settings were changed too."""

    x: float
    y: float
    low: float
    high: float
    runs: tuple[float, ...]
    cell: str
    anchor: str
    hover: tuple[str, ...]
    changed: bool


@dataclass(frozen=True, slots=True)
class Series:
    """Cells joined by a line: one state of chunked prefill and, where needed (`dash`), of other settings."""

    role: str
    dash: int
    label: str
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Mark:
    """A cell without a comparable value, drawn in the lane below the plot: in the row of its role, never as a gap."""

    x: float
    role: str
    status: str
    cell: str
    anchor: str
    hover: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Panel:
    """One metric over the token budget.  `factor` scales stored values to `unit` (ms may be shown in s)."""

    id: str
    metric: str
    title: str
    unit: str
    factor: float
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    marks: tuple[Mark, ...]
    note: str
    alt: str


@dataclass(frozen=True, slots=True)
class Dashboard:
    """Panels that belong together; those with the same unit share their vertical axis."""

    id: str
    title: str
    about: str
    panels: tuple[Panel, ...]


def nudged(axis: Axis, x: float, role: str) -> float:
    """x moved a hair to the side, so that on and off at the same budget do not hide each other."""
    step = {"on": -0.07, "off": 0.07}.get(role, 0.0)
    return x * 2**step if axis.kind == "log2" else x + step


def dashboards(study: StudyView) -> tuple[Dashboard, ...]:
    """The four dashboards of the published campaign, for one study."""
    places, axis = _places(study)
    return tuple(
        Dashboard(name, title, about, _panels(study, f"{study.anchor}-{name}", metrics, places, axis))
        for name, title, about, metrics in DASHBOARDS
    )


def _panels(
    study: StudyView, prefix: str, metrics: Sequence[Metric], places: dict[str, float], axis: Axis
) -> tuple[Panel, ...]:
    plotted = [cell for cell in study.cells if cell.comparable]
    ranges: dict[str, list[float]] = {}
    for metric in metrics:
        values = [cell.values[metric.key] for cell in plotted if metric.key in cell.values]
        ranges.setdefault(metric.unit, []).extend(bound for value in values for bound in (value.low, value.high))
    panels = []
    for metric in metrics:
        seen = ranges[metric.unit]
        factor, unit = (0.001, "s") if metric.unit == "ms" and max(seen, default=0) >= 10_000 else (1.0, metric.unit)
        y = _y_axis([value * factor for value in seen], unit)
        series = _series(plotted, metric, factor, places, study.varying)
        marks = tuple(_mark(cell, metric, places) for cell in study.cells if not _drawn(cell, metric))
        panels.append(
            Panel(
                id=f"{prefix}-{metric.key.replace('_', '-')}",
                metric=metric.key,
                title=metric.label,
                unit=unit,
                factor=factor,
                x=axis,
                y=y,
                series=series,
                marks=marks,
                note=_note(series, marks),
                alt=_alt(metric, unit, series, marks),
            )
        )
    return tuple(panels)


def _drawn(cell: CellView, metric: Metric) -> bool:
    return cell.comparable and metric.key in cell.values


def _places(study: StudyView) -> tuple[dict[str, float], Axis]:
    """Anchor -> x, and the horizontal axis: budgets on a log2 scale, or the cells by name where none has one."""
    budgets = sorted({cell.budget for cell in study.cells if cell.budget is not None})
    if not budgets:
        places = {cell.anchor: float(index) for index, cell in enumerate(study.cells)}
        names = tuple(plain(cell.name, 14) for cell in study.cells)
        ticks = tuple(float(index) for index in range(len(names)))
        if len(ticks) > 12:
            step = math.ceil(len(ticks) / 12)
            ticks, names = ticks[::step], names[::step]
        return places, Axis("category", "cell", -0.6, max(len(study.cells) - 0.4, 0.6), ticks, names)
    # Cells that do not state their budget stand one step right of the largest, under a label that says so.
    unstated = budgets[-1] * 4
    places = {cell.anchor: unstated if cell.budget is None else cell.budget for cell in study.cells}
    missing = any(cell.budget is None for cell in study.cells)
    last = unstated if missing else budgets[-1]
    pad = 2 ** max(0.45, math.log2(last / budgets[0]) * 0.06)
    low, high = budgets[0] / pad, last * pad
    ticks_, labels = _thin(budgets, math.log2(high / low))
    if missing:
        ticks_, labels = [*ticks_, unstated], [*labels, "n/s"]
    title = "max_num_batched_tokens (log2)" + (", n/s: not stated" if missing else "")
    return places, Axis("log2", title, low, high, tuple(ticks_), tuple(labels))


def _thin(budgets: Sequence[float], octaves: float) -> tuple[list[float], list[str]]:
    """Leave out labels that would touch: about 9 fit side by side.  The ends always keep theirs."""
    kept: list[float] = []
    for budget in budgets:
        if kept and math.log2(budget / kept[-1]) < octaves * 0.11:
            if budget != budgets[-1]:
                continue
            if len(kept) > 1:
                kept.pop()
        kept.append(budget)
    return kept, [f"{budget:.0f}" for budget in kept]


def _y_axis(values: Sequence[float], unit: str) -> Axis:
    """Linear from zero while the values span less than a decade (so heights compare), logarithmic beyond."""
    positive = [value for value in values if value > 0]
    if not positive:
        return Axis("linear", unit, 0, 1, (0.0, 0.5, 1.0), ("0", "0.5", "1"))
    low, high = min(positive), max(positive)
    if high / low >= 10 and len(positive) == len(values):
        return _log_axis(low / 1.25, high * 1.3, unit)
    step = 10 ** math.floor(math.log10(high / 4))
    step *= next(multiple for multiple in (1, 2, 2.5, 5, 10) if multiple * step * 5 >= high)
    floor = min(0.0, math.floor(min(values) / step) * step)
    top = high + (high - floor) * 0.08
    ticks = tuple(round(floor + step * index, 10) for index in range(int((top - floor) / step) + 1))
    return Axis("linear", unit, floor, top, ticks, tuple(figure(tick) for tick in ticks))


def _log_axis(low: float, high: float, unit: str) -> Axis:
    decades = math.log10(high / low)
    steps = (1, 2, 5) if decades <= 2.5 else (1, 3) if decades <= 4 else (1,)
    candidates = (
        step * 10.0**exponent
        for exponent in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for step in steps
    )
    ticks = tuple(tick for tick in candidates if low <= tick <= high)
    return Axis("log", f"{unit} (log)", low, high, ticks, tuple(figure(tick) for tick in ticks))


def _series(
    cells: Sequence[CellView], metric: Metric, factor: float, places: dict[str, float], varying: Sequence[str]
) -> tuple[Series, ...]:
    result = []
    for role in ROLES:
        members = [cell for cell in cells if cell.role == role]
        for dash, (label, group) in enumerate(_by_other_settings(members, places, varying)):
            found = sorted((cell for cell in group if metric.key in cell.values), key=lambda cell: places[cell.anchor])
            if found:
                points = tuple(_point(cell, metric, factor, places[cell.anchor]) for cell in found)
                name = ROLE_LABELS[role] + (f" · {label}" if label else "")
                result.append(Series(role, dash, name, points))
    return tuple(result)


def _by_other_settings(
    cells: Sequence[CellView], places: dict[str, float], varying: Sequence[str]
) -> list[tuple[str, list[CellView]]]:
    """Split cells that share a budget by the settings in which these differ, so that one line is one configuration.

    Settings that merely move along with the budget (a ragged campaign) do not split a line.
    """
    keys = [
        key
        for key in varying
        if key not in ("enable_chunked_prefill", "max_num_batched_tokens", "policy")
        and any(
            places[one.anchor] == places[other.anchor] and one.settings.get(key) != other.settings.get(key)
            for index, one in enumerate(cells)
            for other in cells[index + 1 :]
        )
    ]
    groups: dict[str, list[CellView]] = {}
    for cell in cells:
        label = " · ".join(f"{key} {plain(cell.settings.get(key, 'not stated'), 24)}" for key in keys)
        groups.setdefault(label, []).append(cell)
    return list(groups.items())


def _heading(cell: CellView) -> list[str]:
    budget = f"budget {cell.budget:.0f}" if cell.budget is not None else "budget not stated"
    return [cell.name, f"{ROLE_LABELS[cell.role]}, {budget}"]


def _point(cell: CellView, metric: Metric, factor: float, x: float) -> Point:
    value = cell.values[metric.key]
    hover = [*_heading(cell), f"{metric.label}: {value.words(metric.unit)}"]
    if cell.substituted:
        hover.append(f"changed to make it legal: {cell.substituted}")
    if cell.warnings:
        hover.append(f"{count(len(cell.warnings), 'warning')}: {cell.warnings[0]}")
    return Point(
        x=x,
        y=value.mean * factor,
        low=value.low * factor,
        high=value.high * factor,
        runs=tuple(run * factor for run in value.runs),
        cell=cell.name,
        anchor=cell.anchor,
        hover=tuple(hover),
        changed=cell.status is CellStatus.SUBSTITUTED,
    )


def _mark(cell: CellView, metric: Metric, places: dict[str, float]) -> Mark:
    status, said = cell.status.value, cell.status_label
    if cell.comparable:
        status, said = "missing", f"{metric.label} is not in this cell's results"
    elif cell.status in (CellStatus.OK, CellStatus.SUBSTITUTED):
        status, said = "degraded", f"left out of comparisons: {cell.left_out}"
    hover = [*_heading(cell), " ".join(filter(None, (said, f"by rule {cell.rule}" if cell.rule else "")))]
    if cell.reason:
        hover.append(cell.reason)
    if metric.key in cell.values:
        hover.append(f"{metric.label}: {cell.values[metric.key].words(metric.unit)} (not comparable)")
    return Mark(places[cell.anchor], cell.role, status, cell.name, cell.anchor, tuple(hover))


def _note(series: Sequence[Series], marks: Sequence[Mark]) -> str:
    sizes = sorted({len(point.runs) for line in series for point in line.points})
    if not sizes:
        return "no comparable value"
    if sizes == [1]:
        text = "single run a cell"
    elif len(sizes) == 1:
        text = f"n = {sizes[0]} runs a cell; bar: lowest to highest"
    else:
        text = f"n = {sizes[0]} to {sizes[-1]} runs a cell; bar: lowest to highest"
    return f"{text}; {count(len(marks), 'cell')} below" if marks else text


def _alt(metric: Metric, unit: str, series: Sequence[Series], marks: Sequence[Mark]) -> str:
    """The chart in words, for readers who do not see it."""
    parts = [
        f"{line.label}: " + ", ".join(f"{point.cell} {figure(point.y)}" for point in line.points) for line in series
    ]
    if marks:
        parts.append("without a comparable value: " + ", ".join(f"{mark.cell} ({mark.status})" for mark in marks))
    return plain(f"{metric.label} in {unit}. " + "; ".join(parts), 1500)
