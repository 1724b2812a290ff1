"""Comparisons: a metric over an ordered factor.

Every rule is a pure function of the table; none knows a published number.  A rule that sees nothing but noise says so
with the size of the noise; where the noise itself is large, `undecided.py` says that for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from headrace.lab.findings.disturbance import taken
from headrace.lab.findings.finding import Finding
from headrace.lab.findings.shapes import Shape, shape_of, spread
from headrace.lab.findings.stats import (
    ONE_RUN_ALLOWANCE,
    ONE_RUN_TAIL_ALLOWANCE,
    REPEATED_FLOOR,
    allowance,
    is_tail,
    too_noisy,
)
from headrace.lab.findings.table import Factor, Series, Table, means
from headrace.lab.findings.words import METRIC_WORDS, listed, milliseconds, names, noise, percent, quantity, sentence
from headrace.lab.records.results import Cell, Json

# metric -> (finding id, topic, True when more is better)
OUTCOMES = (
    ("duration", "budget-threshold.duration", False),
    ("output_throughput", "budget-threshold.output-throughput", True),
)
# Metrics whose shapes are told together when they agree.
_TRENDS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("budget-trend.ttft", "ttft", ("mean_ttft_ms",)),
    ("budget-trend.itl", "itl", ("mean_itl_ms", "median_tpot_ms")),
    ("budget-trend.tpot-tail", "tpot", ("p99_tpot_ms",)),
)
TOPICS = {metric: topic for _, topic, metrics in _TRENDS for metric in metrics}
# Of the cells on one side of a claim at most so many are quoted: the rest is in `numbers`.
MAX_QUOTED = 3
# "No difference larger than 0.0 %" would claim more than anybody measured.
_SMALLEST_SAID = 0.001
# A curve that turns more often has no trend that a sentence could tell; single runs that go down, up and down again
# show the machine rather than the factor.
_MAX_SEGMENTS = 3
_MAX_SEGMENTS_SINGLE = 2


@dataclass(frozen=True, slots=True)
class _Seen:
    """One metric over one series: a value for each point, and their shape as seen through the noise."""

    metric: str
    series: Series
    values: tuple[float, ...]
    noise: float
    shape: Shape

    @property
    def cells(self) -> list[Cell]:
        return [cell for _, cell in self.series.points]

    @property
    def noisy(self) -> bool:
        return too_noisy(self.metric, self.noise)

    @property
    def single(self) -> bool:
        return any(len(cell.runs) < 2 for cell in self.cells)

    @property
    def no_trend(self) -> bool:
        return len(self.shape.segments) > (_MAX_SEGMENTS_SINGLE if self.single else _MAX_SEGMENTS)


def thresholds(table: Table) -> list[Finding]:
    """Does the whole run take longer, or yield less, below or above some value of the factor?"""
    found: list[Finding] = []
    if table.factor is None:
        return found
    flat: list[_Seen] = []
    for metric, identity, more_is_better in OUTCOMES:
        if table.factor.is_load and metric == "duration":
            continue  # a slower arrival rate lasts longer by definition
        seen = seen_over(table, metric)
        if seen is None:
            continue
        if seen.shape.flat:
            flat += [] if seen.noisy else [seen]
            continue
        claim = _threshold_claim(table.factor, seen, more_is_better)
        found.append(_finding(table, named(identity, table.factor), "throughput", claim, [seen]))
    if flat:
        found.append(_flat(table, table.factor, "budget-threshold.flat", "throughput", flat))
    return found


def trends(table: Table) -> list[Finding]:
    """How latency moves with the factor; metrics of one group that agree share a sentence."""
    found: list[Finding] = []
    if table.factor is None:
        return found
    flat: list[_Seen] = []
    for identity, topic, metrics in _TRENDS:
        together: list[list[_Seen]] = []
        for seen in filter(None, (seen_over(table, metric) for metric in metrics)):
            if seen.shape.flat:
                flat += [] if seen.noisy else [seen]
                continue
            group = next((group for group in together if _same_shape(group[0], seen)), None)
            if group is None:
                together.append([seen])
            else:
                group.append(seen)
        for index, group in enumerate(together):
            name = named(identity, table.factor) + ("" if index == 0 else f".{group[0].metric}")
            found.append(_finding(table, name, topic, _trend_claim(table.factor, group), group))
    if flat:
        found.append(_flat(table, table.factor, "budget-trend.flat", TOPICS[flat[0].metric], flat))
    return found


def restless(table: Table, metric: str) -> float:
    """How large the noise in single runs must be, by their own account: 0, or the smallest tolerance through which
    they no longer go down, up and down again over the factor."""
    seen = seen_over(table, metric)
    if seen is None or not seen.single or not seen.no_trend:
        return 0.0
    pairs = {abs(one / other - 1) for one in seen.values for other in seen.values}
    return next(width for width in sorted(pairs) if len(shape_of(seen.values, width).segments) <= _MAX_SEGMENTS_SINGLE)


def step_mix(table: Table) -> list[Finding]:
    """Median ITL falls while the mean rises: the gaps have split into many short and few long ones."""
    median, average = seen_over(table, "median_itl_ms"), seen_over(table, "mean_itl_ms")
    if table.factor is None or median is None or average is None or median.series is not average.series:
        return []
    slack = 1 + average.noise
    for segment in median.shape.segments:
        low, high = segment.start, segment.end
        if segment.direction > 0 or average.values[high] <= average.values[low] * slack:
            continue
        at = [table.factor.at(median.series.points[index][0]) for index in (low, high)]
        claim = (
            f"From {at[0]} to {at[1]} {table.factor.unit} the median ITL falls ({milliseconds(median.values[low])} to "
            f"{milliseconds(median.values[high])}) while the mean rises ({milliseconds(average.values[low])} to "
            f"{milliseconds(average.values[high])}): a few long steps, those that carry prompts, stand among many "
            "short ones, instead of all steps being middling."
        )
        group = [median, average]
        tail = seen_over(table, "p99_itl_ms")
        if tail is not None and tail.series is median.series:
            group.append(tail)
            if tail.values[high] > tail.values[low] * (1 + tail.noise):
                ends = f"{milliseconds(tail.values[low])} to {milliseconds(tail.values[high])}"
                claim = claim[:-1] + f"; p99 ITL grows from {ends}."
        return [_finding(table, named("budget-trend.itl-mix", table.factor), "itl", claim, group)]
    return []


def seen_over(table: Table, metric: str) -> _Seen | None:
    """The longest series that has the metric in every cell; None where two points are missing."""
    for series in table.series:
        cells = [cell for _, cell in series.points]
        values = means(cells, metric)
        if len(cells) >= 2 and values is not None:
            width = allowance(metric, cells)
            return _Seen(metric, series, tuple(values), width, shape_of(values, width))
    return None


def _same_shape(one: _Seen, other: _Seen) -> bool:
    shapes = [(seen.shape.directions, seen.shape.plateau) for seen in (one, other)]
    return one.series is other.series and shapes[0] == shapes[1]


def _threshold_claim(factor: Factor, seen: _Seen, more_is_better: bool) -> str:
    metric, values, shape = seen.metric, seen.values, seen.shape
    at = [factor.at(x) for x, _ in seen.series.points]
    trend = _trend_claim(factor, [seen])
    pick = max if more_is_better else min
    if factor.is_load or seen.no_trend:
        return trend
    if shape.plateau is not None and shape.directions == ((1,) if more_is_better else (-1,)):
        worse = "the run takes longer" if metric == "duration" else f"{METRIC_WORDS[metric]} is lower"
        start = at[shape.plateau]
        best = pick(range(shape.plateau, len(values)), key=lambda index: values[index])
        below = [f"{quantity(metric, values[index])} at {at[index]}" for index in range(shape.plateau)][-MAX_QUOTED:]
        claim = (
            f"Below a {factor.noun} of {start} {factor.unit} {worse}: {listed(below)} against "
            f"{quantity(metric, values[best])} at {at[best]}"
        )
        if seen.noisy:
            return f"{claim}; from {start} on it cannot be decided which is best (noise {noise(seen.noise)})."
        return f"{claim}; from {start} on all {factor.noun}s lie within {percent(shape.spread)}, best at {at[best]}."
    if seen.noisy:
        return trend  # which value is best is more than the noise lets see
    best = pick(range(len(values)), key=lambda index: values[index])
    end = {0: ", the smallest tried", len(values) - 1: ", the largest tried"}.get(best, "")
    return f"{trend[:-1]}: best at {at[best]}{end}."


def _trend_claim(factor: Factor, group: Sequence[_Seen]) -> str:
    """The sentence for metrics of one shape, which is not flat."""
    shape = group[0].shape
    at = [factor.at(x) for x, _ in group[0].series.points]
    what = sentence(listed([METRIC_WORDS[seen.metric] for seen in group]))
    one = len(group) == 1
    if any(seen.no_trend for seen in group):
        ends = listed([_ends(seen.metric, min(seen.values), max(seen.values)) for seen in group])
        return f"{what} {'has' if one else 'have'} no clear trend over the {factor.noun} ({ends})."
    verb = {1: "rises", -1: "falls"} if one else {1: "rise", -1: "fall"}
    parts: list[str] = []
    for segment in shape.segments:
        ends = listed([_ends(seen.metric, seen.values[segment.start], seen.values[segment.end]) for seen in group])
        parts.append(f"{verb[segment.direction]} from {at[segment.start]} to {at[segment.end]} {factor.unit} ({ends})")
    claim = f"{what} {', then '.join(parts)}"
    if shape.plateau is not None and any(seen.noisy for seen in group):
        claim += f"; from there on nothing can be decided (noise {noise(max(seen.noise for seen in group))})"
    elif shape.plateau is not None:
        width = max(spread(seen.values[shape.plateau :]) for seen in group)
        claim += f" and {'is' if one else 'are'} flat from there on (within {percent(width)})"
    elif len(shape.segments) == 1 and len(at) > 2:
        claim += ", over the whole range"
    return f"{claim}."


def _ends(metric: str, first: float, last: float) -> str:
    return f"{quantity(metric, first)} to {quantity(metric, last)}"


def _flat(table: Table, factor: Factor, identity: str, topic: str, group: Sequence[_Seen]) -> Finding:
    """One finding for all the metrics that do not move."""
    parts = [
        f"in {listed([METRIC_WORDS[seen.metric] for seen in some])} larger than "
        f"{percent(max(_SMALLEST_SAID, *(seen.shape.spread for seen in some)))}"
        for some in ([seen for seen in group if is_tail(seen.metric) is tail] for tail in (False, True))
        if some
    ]
    first, last = (factor.at(group[0].series.points[index][0]) for index in (0, -1))
    claim = (
        f"No difference {' or '.join(parts)} between {factor.noun}s of {first} and {last} {factor.unit}: within noise."
    )
    found = _finding(table, named(identity, factor), topic, claim, group)
    return replace(found, caveats=(*found.caveats, *resolution(group[0].cells, [seen.noise for seen in group])))


def resolution(cells: Sequence[Cell], noises: Sequence[float]) -> list[str]:
    """What repeats could not have shown; of single runs their own caveat tells it."""
    if any(len(cell.runs) < 2 for cell in cells) or max(noises) <= REPEATED_FLOOR:
        return []
    return [f"Differences below {percent(max(noises))} would not show."]


def named(identity: str, factor: Factor) -> str:
    return identity if factor.noun == "budget" else identity.replace("budget", factor.key.replace("_", "-"), 1)


def _finding(table: Table, identity: str, topic: str, claim: str, group: Sequence[_Seen]) -> Finding:
    assert table.factor is not None  # every caller has checked
    series, shape = group[0].series, group[0].shape
    numbers: dict[str, Json] = {
        seen.metric: {table.factor.at(x): value for (x, _), value in zip(seen.series.points, seen.values, strict=True)}
        for seen in group
    }
    numbers["tolerance"] = round(group[0].noise, 4)
    if shape.plateau is not None and not any(seen.noisy for seen in group):
        numbers["flat_from"] = table.factor.at(series.points[shape.plateau][0])
        numbers["spread_where_flat"] = round(max(spread(seen.values[shape.plateau :]) for seen in group), 4)
    cells = tuple(cell.name for cell in group[0].cells)
    tail = any(is_tail(seen.metric) for seen in group)
    return Finding(identity, topic, claim, numbers, cells, caveats_of(table, cells, tail=tail))


def caveats_of(table: Table, cells: Sequence[str], *, tail: bool = False) -> tuple[str, ...]:
    """What weakens a comparison of these cells: single runs, and settings that moved with the factor."""
    compared = [cell for cell in table.cells if cell.name in cells]
    caveats: list[str] = []
    single = [cell.name for cell in compared if len(cell.runs) < 2]
    if len(single) == len(compared):
        if taken(compared) == 0:  # else the disturbance decides, and is told
            tails = f" ({percent(ONE_RUN_TAIL_ALLOWANCE)} in a p99)" if tail else ""
            caveats.append(f"One run a cell: differences up to {percent(ONE_RUN_ALLOWANCE)}{tails} count as noise.")
    elif single:
        caveats.append(f"One run only in {names(single)}: it has no spread of its own.")
    if table.factor is not None and any(restless(table, metric) for metric, *_ in OUTCOMES):
        caveats.append(
            f"Single runs that go up and down over the {table.factor.noun} like these show the machine more than the "
            "setting: repeat them."
        )
    moved: dict[str, list[str]] = {}
    for cell in compared:
        for key, (_, used) in cell.substituted.items():
            moved.setdefault(key, []).append(f"{used} in {cell.name}")
    caveats += [f"Another setting moved with the factor: {key} is {listed(where)}." for key, where in moved.items()]
    return tuple(caveats)
