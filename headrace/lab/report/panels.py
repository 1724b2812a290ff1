"""Study view -> panels: the axes, series and marks of each small chart, as plain values.

Both drawings (Plotly and the inline SVG that shows without script) are made from these, so they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from headrace.lab.records.results import CellStatus
from headrace.lab.report.axes import Axis, places_of, y_axes
from headrace.lab.report.text import count, figure, plain
from headrace.lab.report.view import DASHBOARDS, ROLE_LABELS, CellView, Metric, StudyView

ROLES = ("on", "off", "unset")


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
    """One metric over the setting that varies.  `factor` scales stored values to `unit` (ms may be shown in s)."""

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


def dashboards(studies: Sequence[StudyView]) -> list[tuple[Dashboard, ...]]:
    """The four dashboards of the published campaign, for each of the studies that stand side by side.

    Panels of one dashboard with one unit share their vertical axis; between studies its kind and unit agree.
    """
    scales = [_scales(studies, metrics) for _, _, _, metrics in DASHBOARDS]
    boards: list[tuple[Dashboard, ...]] = []
    for index, study in enumerate(studies):
        places, axis = places_of(study)
        boards.append(
            tuple(
                Dashboard(
                    name,
                    title,
                    about,
                    _panels(study, f"{study.anchor}-{name}", metrics, places, axis, scale[index]),
                )
                for (name, title, about, metrics), scale in zip(DASHBOARDS, scales, strict=True)
            )
        )
    return boards


def _scales(studies: Sequence[StudyView], metrics: Sequence[Metric]) -> list[dict[str, tuple[float, str, Axis]]]:
    """For each study: stored unit -> the factor to the unit that is shown, that unit, and the axis."""
    scales: list[dict[str, tuple[float, str, Axis]]] = [{} for _ in studies]
    for stored in dict.fromkeys(metric.unit for metric in metrics):
        keys = [metric.key for metric in metrics if metric.unit == stored]
        seen = [[bound for cell in study.cells for bound in _bounds(cell, keys)] for study in studies]
        long = stored == "ms" and any(value >= 10_000 for values in seen for value in values)
        factor, unit = (0.001, "s") if long else (1.0, stored)
        axes = y_axes([[value * factor for value in values] for values in seen], unit)
        for scale, axis in zip(scales, axes, strict=True):
            scale[stored] = (factor, unit, axis)
    return scales


def _bounds(cell: CellView, keys: Sequence[str]) -> list[float]:
    values = [cell.values[key] for key in keys if cell.comparable and key in cell.values]
    return [bound for value in values for bound in (value.low, value.high)]


def _panels(
    study: StudyView,
    prefix: str,
    metrics: Sequence[Metric],
    places: dict[str, float],
    axis: Axis,
    scales: Mapping[str, tuple[float, str, Axis]],
) -> tuple[Panel, ...]:
    plotted = [cell for cell in study.cells if cell.comparable]
    panels = []
    for metric in metrics:
        factor, unit, y = scales[metric.unit]
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

    Settings that merely move along with the budget (a ragged campaign) do not split a line; another target does.
    """
    keys = [
        key
        for key in varying
        if key not in ("enable_chunked_prefill", "max_num_batched_tokens", "policy")
        and any(
            (key == "target" or places[one.anchor] == places[other.anchor])
            and one.settings.get(key) != other.settings.get(key)
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
    return [cell.name, f"{ROLE_LABELS[cell.role]}, {cell.x_words}"]


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
