"""Comparisons: a metric over an ordered factor, and chunked prefill on against off.

Every rule is a pure function of the table; none knows a published number.  A rule that sees nothing but noise says so
with the size of the noise; where the noise itself is large, `undecided` says that for all of them.
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
    Ratio,
    allowance,
    is_tail,
    ratio,
    too_noisy,
)
from headrace.lab.findings.table import Factor, Series, Table, mean, means
from headrace.lab.findings.words import METRIC_WORDS, listed, milliseconds, names, noise, percent, quantity, sentence
from headrace.lab.records.results import Cell, Json

# metric -> (finding id, topic, True when more is better)
_OUTCOMES = (
    ("duration", "budget-threshold.duration", False),
    ("output_throughput", "budget-threshold.output-throughput", True),
)
# Metrics whose shapes are told together when they agree.
_TRENDS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("budget-trend.ttft", "ttft", ("mean_ttft_ms",)),
    ("budget-trend.itl", "itl", ("mean_itl_ms", "median_tpot_ms")),
    ("budget-trend.tpot-tail", "tpot", ("p99_tpot_ms",)),
)
_TOPICS = {metric: topic for _, topic, metrics in _TRENDS for metric in metrics}
_PAIRED_METRICS = ("duration", "output_throughput", "mean_ttft_ms")
_PAIRED_TAIL = "p99_tpot_ms"
# Of the cells on one side of a claim at most so many are quoted: the rest is in `numbers`.
_MAX_QUOTED = 3
# "No difference larger than 0.0 %" would claim more than anybody measured.
_SMALLEST_SAID = 0.001
# A curve that turns more often has no trend that a sentence could tell; single runs that go down, up and down again
# show the machine rather than the factor.
_MAX_SEGMENTS = 3
_MAX_SEGMENTS_SINGLE = 2

_Pair = tuple[float, Cell, Cell, Ratio]  # x, cell with chunked prefill, cell without, the ratio without/with


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
    for metric, identity, more_is_better in _OUTCOMES:
        if table.factor.is_load and metric == "duration":
            continue  # a slower arrival rate lasts longer by definition
        seen = _seen(table, metric)
        if seen is None:
            continue
        if seen.shape.flat:
            flat += [] if seen.noisy else [seen]
            continue
        claim = _threshold_claim(table.factor, seen, more_is_better)
        found.append(_finding(table, _named(identity, table.factor), "throughput", claim, [seen]))
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
        for seen in filter(None, (_seen(table, metric) for metric in metrics)):
            if seen.shape.flat:
                flat += [] if seen.noisy else [seen]
                continue
            group = next((group for group in together if _same_shape(group[0], seen)), None)
            if group is None:
                together.append([seen])
            else:
                group.append(seen)
        for index, group in enumerate(together):
            name = _named(identity, table.factor) + ("" if index == 0 else f".{group[0].metric}")
            found.append(_finding(table, name, topic, _trend_claim(table.factor, group), group))
    if flat:
        found.append(_flat(table, table.factor, "budget-trend.flat", _TOPICS[flat[0].metric], flat))
    return found


def undecided(table: Table) -> list[Finding]:
    """One finding for all that the noise hides: never "no difference" where a difference would not have shown."""
    if table.factor is None:
        return []
    factor = table.factor
    metrics = [metric for metric, *_ in _OUTCOMES if metric != "duration" or not factor.is_load] + list(_TOPICS)
    trends = [seen for metric in metrics if (seen := _seen(table, metric)) and seen.shape.flat and seen.noisy]
    pairs = [
        (metric, row)
        for _, common in _matched(table)
        for metric in (*_PAIRED_METRICS, _PAIRED_TAIL)
        for row in _ratios(metric, common)
        if _hidden(metric, row)
    ]
    if not trends and not pairs:
        return []
    sizes: dict[str, float] = {seen.metric: seen.noise for seen in trends}
    for metric, row in pairs:
        sizes[metric] = max(sizes.get(metric, 0.0), row[3].noise)
    questions: list[str] = []
    if trends:
        first, last = (factor.at(trends[0].series.points[index][0]) for index in (0, -1))
        questions.append(
            f"how {listed([METRIC_WORDS[seen.metric] for seen in trends])} depend on the {factor.noun} between {first} "
            f"and {last} {factor.unit}"
        )
    if pairs:
        at = listed([factor.at(x) for x in sorted({row[0] for _, row in pairs})])
        what = listed([METRIC_WORDS[metric] for metric in dict.fromkeys(metric for metric, _ in pairs)])
        questions.append(f"whether chunked prefill on or off changes {what} at {at} {factor.unit}")
    claim = f"Cannot be decided: {' and '.join(questions)}. Run-to-run noise is {_noises(sizes)}."
    cells = [cell.name for seen in trends for cell in seen.cells]
    cells += [cell.name for _, (_, on, off, _) in pairs for cell in (on, off)]
    numbers: dict[str, Json] = {"noise": {metric: round(size, 4) for metric, size in sizes.items()}}
    identity = _named("budget-undecided", factor)
    return [Finding(identity, "comparability", claim, numbers, tuple(dict.fromkeys(cells)))]


def restless(table: Table, metric: str) -> float:
    """How large the noise in single runs must be, by their own account: 0, or the smallest tolerance through which
    they no longer go down, up and down again over the factor."""
    seen = _seen(table, metric)
    if seen is None or not seen.single or not seen.no_trend:
        return 0.0
    pairs = {abs(one / other - 1) for one in seen.values for other in seen.values}
    return next(width for width in sorted(pairs) if len(shape_of(seen.values, width).segments) <= _MAX_SEGMENTS_SINGLE)


def _noises(sizes: dict[str, float]) -> str:
    """The largest of the means and medians, and of the tails."""
    body = [size for metric, size in sizes.items() if not is_tail(metric)]
    tails = [size for metric, size in sizes.items() if is_tail(metric)]
    largest = [noise(max(some)) for some in (body, tails) if some]
    reach = "up to " if len(body) > 1 and "more" not in largest[0] else ""
    if len(largest) == 1 or largest[0] == largest[1]:
        return reach + largest[0]
    what = listed([METRIC_WORDS[metric] for metric in sizes if is_tail(metric)])
    return f"{reach}{largest[0]} and {largest[1]} in {what}"


def step_mix(table: Table) -> list[Finding]:
    """Median ITL falls while the mean rises: the gaps have split into many short and few long ones."""
    median, average = _seen(table, "median_itl_ms"), _seen(table, "mean_itl_ms")
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
        tail = _seen(table, "p99_itl_ms")
        if tail is not None and tail.series is median.series:
            group.append(tail)
            if tail.values[high] > tail.values[low] * (1 + tail.noise):
                ends = f"{milliseconds(tail.values[low])} to {milliseconds(tail.values[high])}"
                claim = claim[:-1] + f"; p99 ITL grows from {ends}."
        return [_finding(table, _named("budget-trend.itl-mix", table.factor), "itl", claim, group)]
    return []


def on_off(table: Table) -> list[Finding]:
    """Chunked prefill on against off, at every value of the factor that has both."""
    if table.factor is None:
        return []
    found: list[Finding] = []
    for number, (on, common) in enumerate(_matched(table)):
        # a study over several models or loads has a pair of series for each
        suffix = "" if number == 0 else f".{number + 1}"
        found += _outcome_pairs(table, table.factor, on, common, suffix)
        found += _tail_pairs(table, table.factor, common, suffix)
    return found


def _matched(table: Table) -> list[tuple[Series, list[tuple[float, Cell, Cell]]]]:
    """The series with chunked prefill, with the cells that it and its opposite have at the same values."""
    found = []
    for on, off in _opposites(table.series):
        partner = dict(off.points)
        common = [(x, cell, partner[x]) for x, cell in on.points if x in partner]
        if common:
            found.append((on, common))
    return found


def _hidden(metric: str, row: _Pair) -> bool:
    """No difference seen, and none that could have been."""
    return not row[3].distinct and too_noisy(metric, row[3].noise)


def _outcome_pairs(
    table: Table, factor: Factor, on: Series, common: Sequence[tuple[float, Cell, Cell]], suffix: str
) -> list[Finding]:
    by_metric = {metric: _ratios(metric, common) for metric in _PAIRED_METRICS}
    by_metric = {metric: rows for metric, rows in by_metric.items() if len(rows) == len(common)}
    if not by_metric:
        return []
    every = [row for rows in by_metric.values() for row in rows]
    numbers: dict[str, Json] = {
        f"off_over_on.{metric}.{factor.at(x)}": round(found.value, 4)
        for metric, rows in by_metric.items()
        for x, _, _, found in rows
    }
    clear = {m: rows for m, rows in by_metric.items() if not any(_hidden(m, row) for row in rows)}
    apart = {x for x, _, _, found in every if found.distinct}
    alike = [x for x, _, _ in common if x not in apart]
    claims: list[str] = []
    if alike and clear:
        largest = max(abs(found.value - 1) for rows in clear.values() for x, _, _, found in rows if x in alike)
        numbers["largest_difference_of_ties"] = round(largest, 4)
        claims.append(
            f"{sentence(_where(factor, on, alike))} chunked prefill on or off makes no difference in "
            f"{listed([METRIC_WORDS[metric] for metric in clear])}: at most {percent(largest)}."
        )
    for metric, rows in by_metric.items():
        different = [row for row in rows if row[3].distinct]
        if different:
            claims.append(_different(metric, factor, different))
    if not claims:
        return []
    both = [cell for _, one, other in common for cell in (one, other)]
    cells = tuple(cell.name for cell in both)
    caveats = _caveats(table, cells)
    if alike and clear:
        caveats += tuple(_resolution(both, [found.noise for rows in clear.values() for *_, found in rows]))
    return [Finding(f"chunking.outcome{suffix}", "chunking", " ".join(claims), numbers, cells, caveats)]


def _tail_pairs(table: Table, factor: Factor, common: Sequence[tuple[float, Cell, Cell]], suffix: str) -> list[Finding]:
    metric = _PAIRED_TAIL
    rows = _ratios(metric, common)
    distinct = sorted((row for row in rows if row[3].distinct), key=lambda row: -abs(row[3].value - 1))
    signs = {row[3].value > 1 for row in distinct}
    if len(signs) != 1:
        return []
    longer = signs.pop()
    claim = (
        f"Without chunked prefill the TPOT tail is {'longer' if longer else 'shorter'}: p99 "
        f"{_against(metric, factor, distinct)} {factor.unit}"
    )
    same_way = [row for row in rows if row not in distinct and (row[3].value > 1) == longer]
    if same_way:
        claim += f" (the same way, but within noise: {_against(metric, factor, same_way)})"
    if longer:
        claim += "; whole prompts are computed in steps of their own, and stall the sequences that decode"
    numbers: dict[str, Json] = {}
    for x, one, other, found in rows:
        numbers[f"on.{metric}.{factor.at(x)}"] = mean(one, metric)
        numbers[f"off.{metric}.{factor.at(x)}"] = mean(other, metric)
        numbers[f"off_over_on.{metric}.{factor.at(x)}"] = round(found.value, 4)
    cells = tuple(cell.name for _, one, other, _ in rows for cell in (one, other))
    caveats = _caveats(table, cells, tail=True)
    return [Finding(f"chunking.tpot-tail{suffix}", "chunking", f"{claim}.", numbers, cells, caveats)]


def _ratios(metric: str, common: Sequence[tuple[float, Cell, Cell]]) -> list[_Pair]:
    among = [cell for _, one, other in common for cell in (one, other)]
    found = [(x, one, other, ratio(metric, one, other, len(common), among)) for x, one, other in common]
    return [(x, one, other, value) for x, one, other, value in found if value is not None]


def _different(metric: str, factor: Factor, rows: Sequence[_Pair]) -> str:
    signs = {found.value > 1 for *_, found in rows}
    more, less = ("longer", "shorter") if metric == "duration" else ("higher", "lower")
    how = "differs" if len(signs) > 1 else f"is {more if signs.pop() else less}"
    return f"Without chunked prefill {METRIC_WORDS[metric]} {how}: {_against(metric, factor, rows)} {factor.unit}."


def _against(metric: str, factor: Factor, rows: Sequence[_Pair]) -> str:
    return listed(
        [
            f"{quantity(metric, mean(other, metric) or 0.0)} against {quantity(metric, mean(one, metric) or 0.0)} at "
            f"{factor.at(x)}"
            for x, one, other, _ in rows[:_MAX_QUOTED]
        ]
    )


def _opposites(series: Sequence[Series]) -> list[tuple[Series, Series]]:
    def rest(one: Series) -> dict[str, Json]:
        return {key: value for key, value in one.settings.items() if key != "enable_chunked_prefill"}

    return [
        (on, off)
        for on in series
        if on.chunked is True
        for off in series
        if off.chunked is False and rest(on) == rest(off)
    ]


def _where(factor: Factor, on: Series, xs: Sequence[float]) -> str:
    highest = [x for x, _ in on.points][-len(xs) :]
    if len(xs) > 1 and list(xs) == highest:
        return f"from a {factor.noun} of {factor.at(xs[0])} {factor.unit} up"
    return f"at a {factor.noun} of {listed([factor.at(x) for x in xs])} {factor.unit}"


def _seen(table: Table, metric: str) -> _Seen | None:
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
        below = [f"{quantity(metric, values[index])} at {at[index]}" for index in range(shape.plateau)][-_MAX_QUOTED:]
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
    found = _finding(table, _named(identity, factor), topic, claim, group)
    return replace(found, caveats=(*found.caveats, *_resolution(group[0].cells, [seen.noise for seen in group])))


def _resolution(cells: Sequence[Cell], noises: Sequence[float]) -> list[str]:
    """What repeats could not have shown; of single runs their own caveat tells it."""
    if any(len(cell.runs) < 2 for cell in cells) or max(noises) <= REPEATED_FLOOR:
        return []
    return [f"Differences below {percent(max(noises))} would not show."]


def _named(identity: str, factor: Factor) -> str:
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
    return Finding(identity, topic, claim, numbers, cells, _caveats(table, cells, tail=tail))


def _caveats(table: Table, cells: Sequence[str], *, tail: bool = False) -> tuple[str, ...]:
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
    if table.factor is not None and any(restless(table, metric) for metric, *_ in _OUTCOMES):
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
