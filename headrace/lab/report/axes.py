"""The axes of a chart: where each cell stands, which range and which ticks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from headrace.lab.report.text import figure, plain
from headrace.lab.report.view import StudyView


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis: `kind` is log2, log, linear or category; range and ticks are in the data's unit, not logarithms."""

    kind: str
    title: str
    low: float
    high: float
    ticks: tuple[float, ...]
    labels: tuple[str, ...]


def nudged(axis: Axis, x: float, role: str) -> float:
    """x moved a hair to the side, so that on and off at the same budget do not hide each other."""
    step = {"on": -0.07, "off": 0.07}.get(role, 0.0)
    return x * 2**step if axis.kind == "log2" else x + step


def places_of(study: StudyView) -> tuple[dict[str, float], Axis]:
    """Anchor -> x, and the horizontal axis: the factor on a log2 scale, or the cells by name where none has a value."""
    values = sorted({cell.x for cell in study.cells if cell.x is not None and math.isfinite(cell.x)})
    if not values:
        return _by_name(study)
    # "inf" and "not stated" have no place on the scale: they stand right of the largest, under their own labels.
    extra: list[tuple[float, str]] = []
    for label, present in (
        ("inf", any(cell.x == math.inf for cell in study.cells)),
        ("n/s", any(cell.x is None for cell in study.cells)),
    ):
        if present:
            extra.append(((extra[-1][0] if extra else values[-1]) * 4, label))
    beyond = {label: place for place, label in extra}
    places = {
        cell.anchor: beyond["n/s"] if cell.x is None else cell.x if math.isfinite(cell.x) else beyond["inf"]
        for cell in study.cells
    }
    last = extra[-1][0] if extra else values[-1]
    pad = 2 ** max(0.45, math.log2(last / values[0]) * 0.06)
    low, high = values[0] / pad, last * pad
    ticks = [*((value, f"{value:.10g}") for value in _thin(values, math.log2(high / low))), *extra]
    title = f"{study.factor} (log2)" + (", n/s: not stated" if "n/s" in beyond else "")
    return places, Axis("log2", title, low, high, tuple(at for at, _ in ticks), tuple(text for _, text in ticks))


def _by_name(study: StudyView) -> tuple[dict[str, float], Axis]:
    """Names mostly differ in their ends, so the end is what a long one keeps."""
    places = {cell.anchor: float(index) for index, cell in enumerate(study.cells)}
    step = math.ceil(len(study.cells) / 12) or 1
    kept = [(float(index), cell.name) for index, cell in enumerate(study.cells)][::step]
    names = tuple(name if len(name) <= 14 else f"…{plain(name)[-13:]}" for _, name in kept)
    return places, Axis(
        "category", "cell", -0.6, max(len(study.cells) - 0.4, 0.6), tuple(place for place, _ in kept), names
    )


def _thin(values: Sequence[float], octaves: float) -> list[float]:
    """Leave out labels that would touch: about 9 fit side by side.  The ends always keep theirs."""
    kept: list[float] = []
    for value in values:
        if kept and math.log2(value / kept[-1]) < octaves * 0.11:
            if value != values[-1]:
                continue
            if len(kept) > 1:
                kept.pop()
        kept.append(value)
    return kept


def y_axes(groups: Sequence[Sequence[float]], unit: str) -> list[Axis]:
    """One vertical axis for each group of values that stand side by side (a study each), all of one kind.

    Linear from zero while every group spans less than a decade (so heights compare), else logarithmic, and then all
    cover the same number of decades: the same step up is the same ratio in each.
    """
    present = [group for group in groups if any(value > 0 for value in group)]
    positive = all(value > 0 for group in present for value in group)
    ratios = [max(group) / min(group) for group in present] if positive else []
    if not any(ratio >= 10 for ratio in ratios):
        return [_linear_axis(group, unit) for group in groups]
    decades = math.log10(max(ratios))
    return [_log_axis(group, unit, decades) if group in present else _linear_axis(group, unit) for group in groups]


def _linear_axis(values: Sequence[float], unit: str) -> Axis:
    high = max(values, default=0.0)
    if high <= 0:
        return Axis("linear", unit, 0, 1, (0.0, 0.5, 1.0), ("0", "0.5", "1"))
    step = 10 ** math.floor(math.log10(high / 4))
    step *= next(multiple for multiple in (1, 2, 2.5, 5, 10) if multiple * step * 5 >= high)
    floor = min(0.0, math.floor(min(values) / step) * step)
    top = high + (high - floor) * 0.08
    ticks = tuple(round(floor + step * index, 10) for index in range(int((top - floor) / step) + 1))
    return Axis("linear", unit, floor, top, ticks, tuple(figure(tick) for tick in ticks))


def _log_axis(values: Sequence[float], unit: str, span: float) -> Axis:
    """`span` decades and a margin, with the values in the middle."""
    spare = 10 ** ((span - math.log10(max(values) / min(values))) / 2)
    low, high = min(values) / spare / 1.25, max(values) * spare * 1.3
    decades = math.log10(high / low)
    steps = (1, 2, 5) if decades <= 2.5 else (1, 3) if decades <= 4 else (1,)
    candidates = (
        step * 10.0**exponent
        for exponent in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for step in steps
    )
    ticks = tuple(tick for tick in candidates if low <= tick <= high)
    return Axis("log", f"{unit} (log)", low, high, ticks, tuple(figure(tick) for tick in ticks))
