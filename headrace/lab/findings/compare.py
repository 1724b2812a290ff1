"""Comparisons: a metric over an ordered factor, and chunked prefill on against off.

Every rule is a pure function of the table; none knows a published number.  A rule that sees nothing but noise says so
with the size of the noise, or says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from headrace.lab.findings.finding import Finding
from headrace.lab.findings.shapes import Shape, shape_of
from headrace.lab.findings.stats import (
    ONE_RUN_ALLOWANCE,
    ONE_RUN_TAIL_ALLOWANCE,
    allowance,
    is_tail,
    one_run_allowance,
    ratio,
)
from headrace.lab.findings.table import Factor, Series, Table, mean, means
from headrace.lab.findings.words import METRIC_WORDS, listed, milliseconds, percent, quantity, sentence
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
_PAIRED_METRICS = ("duration", "output_throughput", "mean_ttft_ms")
# Of the cells below a threshold at most so many are quoted: the rest is in `numbers`.
_MAX_QUOTED = 3


def thresholds(table: Table) -> list[Finding]:
    """Does the whole run take longer, or yield less, below or above some value of the factor?"""
    found: list[Finding] = []
    if table.factor is None:
        return found
    for metric, identity, more_is_better in _OUTCOMES:
        if table.factor.is_load and metric == "duration":
            continue  # a slower arrival rate lasts longer by definition
        seen = _shape(table, metric)
        if seen is not None:
            series, values, shape = seen
            claim = _threshold_claim(metric, table.factor, series, values, shape, more_is_better)
            found.append(_finding(table, _named(identity, table.factor), "throughput", claim, series, [metric], shape))
    return found


def trends(table: Table) -> list[Finding]:
    """How latency moves with the factor; metrics of one group that agree share a sentence."""
    found: list[Finding] = []
    if table.factor is None:
        return found
    for identity, topic, metrics in _TRENDS:
        seen = [(metric, one) for metric in metrics if (one := _shape(table, metric)) is not None]
        together: list[tuple[list[str], Series, list[Sequence[float]], Shape]] = []
        for metric, (series, values, shape) in seen:
            for names, other, several, known in together:
                if (known.directions, known.plateau) == (shape.directions, shape.plateau) and other is series:
                    names.append(metric)
                    several.append(values)
                    break
            else:
                together.append(([metric], series, [values], shape))
        for index, (names, series, several, shape) in enumerate(together):
            claim = _trend_claim(names, table.factor, series, several, shape)
            name = _named(identity, table.factor) + ("" if index == 0 else f".{names[0]}")
            found.append(_finding(table, name, topic, claim, series, names, shape))
    return found


def step_mix(table: Table) -> list[Finding]:
    """Median ITL falls while the mean rises: the gaps have split into many short and few long ones."""
    median, average = _shape(table, "median_itl_ms"), _shape(table, "mean_itl_ms")
    if table.factor is None or median is None or average is None or median[0] is not average[0]:
        return []
    series, medians, shape = median
    averages = average[1]
    slack = 1 + allowance("mean_itl_ms", [cell for _, cell in series.points])
    found: list[Finding] = []
    for segment in shape.segments:
        low, high = segment.start, segment.end
        if segment.direction > 0 or averages[high] <= averages[low] * slack:
            continue
        at = [table.factor.at(series.points[index][0]) for index in (low, high)]
        claim = (
            f"From {at[0]} to {at[1]} {table.factor.unit} the median ITL falls ({milliseconds(medians[low])} to "
            f"{milliseconds(medians[high])}) while the mean rises ({milliseconds(averages[low])} to "
            f"{milliseconds(averages[high])}): a few long steps, those that carry prompts, stand among many short "
            "ones, instead of all steps being middling."
        )
        tails = means([cell for _, cell in series.points], "p99_itl_ms")
        if tails is not None and tails[high] > tails[low] * (1 + one_run_allowance("p99_itl_ms")):
            claim = claim[:-1] + f"; p99 ITL grows from {milliseconds(tails[low])} to {milliseconds(tails[high])}."
        metrics = ["median_itl_ms", "mean_itl_ms", "p99_itl_ms"]
        found.append(
            _finding(table, _named("budget-trend.itl-mix", table.factor), "itl", claim, series, metrics, shape)
        )
    return found


def on_off(table: Table) -> list[Finding]:
    """Chunked prefill on against off, at every value of the factor that has both."""
    if table.factor is None:
        return []
    found: list[Finding] = []
    for on, off in _pairs(table.series):
        partner = dict(off.points)
        common = [(x, cell, partner[x]) for x, cell in on.points if x in partner]
        if common:
            found += _outcome_pairs(table, table.factor, on, common)
            found += _tail_pairs(table, table.factor, common)
    return found


def _outcome_pairs(
    table: Table, factor: Factor, on: Series, common: Sequence[tuple[float, Cell, Cell]]
) -> list[Finding]:
    ratios = {
        metric: [(x, one, other, found) for x, one, other in common if (found := ratio(metric, one, other)) is not None]
        for metric in _PAIRED_METRICS
    }
    ratios = {metric: rows for metric, rows in ratios.items() if len(rows) == len(common)}
    if not ratios:
        return []
    numbers: dict[str, Json] = {
        f"off_over_on.{metric}.{factor.at(x)}": round(found.value, 4)
        for metric, rows in ratios.items()
        for x, _, _, found in rows
    }
    cells = tuple(cell.name for _, one, other in common for cell in (one, other))
    names = listed([METRIC_WORDS[metric] for metric in ratios])
    apart = {x for rows in ratios.values() for x, _, _, found in rows if found.distinct}
    alike = [x for x, _, _ in common if x not in apart]
    claims: list[str] = []
    if alike:
        largest = max(abs(found.value - 1) for rows in ratios.values() for x, _, _, found in rows if x in alike)
        numbers["largest_difference_of_ties"] = round(largest, 4)
        claims.append(
            f"{sentence(_where(factor, on, alike))} chunked prefill on or off makes no difference in {names}: "
            f"at most {percent(largest)}."
        )
    for metric, rows in ratios.items():
        different = [row for row in rows if row[3].distinct]
        if different:
            claims.append(_different(metric, factor, different))
    return [Finding("chunking.outcome", "chunking", " ".join(claims), numbers, cells, _caveats(table, cells))]


def _different(metric: str, factor: Factor, rows: Sequence[tuple[float, Cell, Cell, object]]) -> str:
    texts = []
    for x, one, other, _ in rows[:_MAX_QUOTED]:
        a, b = mean(one, metric) or 0.0, mean(other, metric) or 0.0
        texts.append(f"{quantity(metric, b)} against {quantity(metric, a)} at {factor.at(x)}")
    return f"Without chunked prefill {METRIC_WORDS[metric]} is different: {listed(texts)}."


def _tail_pairs(table: Table, factor: Factor, common: Sequence[tuple[float, Cell, Cell]]) -> list[Finding]:
    metric = "p99_tpot_ms"
    rows = [(x, one, other, found) for x, one, other in common if (found := ratio(metric, one, other)) is not None]
    distinct = [row for row in rows if row[3].distinct]
    signs = {row[3].value > 1 for row in distinct}
    if not distinct or len(signs) != 1:
        return []
    longer = signs.pop()
    distinct.sort(key=lambda row: abs(row[3].value - 1), reverse=True)

    def quoted(some: Sequence[tuple[float, Cell, Cell, object]]) -> str:
        return listed(
            [
                f"{milliseconds(mean(other, metric) or 0)} against {milliseconds(mean(one, metric) or 0)} at "
                f"{factor.at(x)}"
                for x, one, other, _ in some
            ]
        )

    claim = (
        f"Without chunked prefill the TPOT tail is {'longer' if longer else 'shorter'}: p99 {quoted(distinct)} "
        f"{factor.unit}"
    )
    rest = [row for row in rows if row not in distinct]
    same_way = [row for row in rest if (row[3].value > 1) == longer]
    if same_way:
        claim += f" (the same way, but within noise: {quoted(same_way)})"
    if longer:
        claim += "; whole prompts are computed in steps of their own, and stall the sequences that decode"
    cells = tuple(cell.name for _, one, other, _ in rows for cell in (one, other))
    numbers: dict[str, Json] = {
        f"off_over_on.{metric}.{factor.at(x)}": round(found.value, 4) for x, _, _, found in rows
    }
    for x, one, other, _ in rows:
        numbers[f"on.{metric}.{factor.at(x)}"] = mean(one, metric)
        numbers[f"off.{metric}.{factor.at(x)}"] = mean(other, metric)
    caveats = _caveats(table, cells, tail=True)
    return [Finding("chunking.tpot-tail", "chunking", claim + ".", numbers, cells, caveats)]


def _pairs(series: Sequence[Series]) -> list[tuple[Series, Series]]:
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


def _shape(table: Table, metric: str) -> tuple[Series, Sequence[float], Shape] | None:
    """Shape over the longest series that has the metric in every cell; None where two points are missing."""
    for series in table.series:
        cells = [cell for _, cell in series.points]
        values = means(cells, metric)
        if len(cells) >= 2 and values is not None:
            return series, values, shape_of(values, allowance(metric, cells))
    return None


def _threshold_claim(
    metric: str, factor: Factor, series: Series, values: Sequence[float], shape: Shape, more_is_better: bool
) -> str:
    what = METRIC_WORDS[metric]
    at = [factor.at(x) for x, _ in series.points]
    if shape.flat:
        return _flat_claim([metric], factor, series, shape)
    better = 1 if more_is_better else -1
    worse = "lower" if more_is_better else "longer"
    subject = f"{what} is {worse}" if metric != "duration" else f"the run takes {worse}"
    if len(shape.segments) == 1 and shape.plateau is not None and shape.directions == (better,):
        quoted = _quoted(metric, at, values, range(shape.plateau))
        best = _best(values, range(shape.plateau, len(values)), more_is_better)
        start = at[shape.plateau]
        return (
            f"Below a {factor.noun} of {start} {factor.unit} {subject}: {quoted} against "
            f"{quantity(metric, values[best])} at {at[best]}; from {start} on all {factor.noun}s lie within "
            f"{percent(shape.spread)}, best at {at[best]}."
        )
    if len(shape.segments) == 1 and shape.plateau is None and shape.directions == (better,):
        return _trend_claim([metric], factor, series, [values], shape)[:-1] + f": best at {at[-1]}, the largest tried."
    if len(shape.segments) == 1 and shape.directions == (-better,):
        return _trend_claim([metric], factor, series, [values], shape)[:-1] + f": best at {at[0]}, the smallest tried."
    best = _best(values, range(len(values)), more_is_better)
    return _trend_claim([metric], factor, series, [values], shape)[:-1] + f": best at {at[best]}."


def _trend_claim(
    metrics: Sequence[str], factor: Factor, series: Series, several: Sequence[Sequence[float]], shape: Shape
) -> str:
    if shape.flat:
        return _flat_claim(metrics, factor, series, shape)
    at = [factor.at(x) for x, _ in series.points]
    names = sentence(listed([METRIC_WORDS[metric] for metric in metrics]))
    one = len(metrics) == 1
    if len(shape.segments) > 3:
        ends = ", ".join(
            f"{quantity(metric, min(values))} to {quantity(metric, max(values))}"
            for metric, values in zip(metrics, several, strict=True)
        )
        return f"{names} {'has' if one else 'have'} no clear trend over the {factor.noun} ({ends})."
    parts: list[str] = []
    for segment in shape.segments:
        verb = {1: "rises", -1: "falls"} if one else {1: "rise", -1: "fall"}
        ends = " and ".join(
            f"{quantity(metric, values[segment.start])} to {quantity(metric, values[segment.end])}"
            for metric, values in zip(metrics, several, strict=True)
        )
        parts.append(f"{verb[segment.direction]} from {at[segment.start]} to {at[segment.end]} {factor.unit} ({ends})")
    claim = f"{names} {', then '.join(parts)}"
    if shape.plateau is not None:
        widths = [max(values[shape.plateau :]) / min(values[shape.plateau :]) - 1 for values in several]
        claim += f" and {'is' if one else 'are'} flat from there on (within {percent(max(widths))})"
    elif len(shape.segments) == 1:
        claim += ", over the whole range"
    return claim + "."


def _flat_claim(metrics: Sequence[str], factor: Factor, series: Series, shape: Shape) -> str:
    at = [factor.at(x) for x, _ in series.points]
    what = listed([METRIC_WORDS[metric] for metric in metrics])
    return (
        f"No difference in {what} larger than {percent(shape.spread)} between {factor.noun}s of {at[0]} and {at[-1]} "
        f"{factor.unit}: within noise."
    )


def _quoted(metric: str, at: Sequence[str], values: Sequence[float], indices: range) -> str:
    shown = list(indices)[:_MAX_QUOTED]
    return listed([f"{quantity(metric, values[index])} at {at[index]}" for index in shown])


def _best(values: Sequence[float], indices: range, more_is_better: bool) -> int:
    return (max if more_is_better else min)(indices, key=lambda index: values[index])


def _named(identity: str, factor: Factor) -> str:
    return identity if factor.noun == "budget" else identity.replace("budget", factor.key.replace("_", "-"), 1)


def _finding(
    table: Table, identity: str, topic: str, claim: str, series: Series, metrics: Sequence[str], shape: Shape
) -> Finding:
    assert table.factor is not None  # every caller has checked
    numbers: dict[str, Json] = {
        metric: {table.factor.at(x): mean(cell, metric) for x, cell in series.points} for metric in metrics
    }
    numbers["tolerance"] = round(allowance(metrics[0], [cell for _, cell in series.points]), 4)
    if shape.plateau is not None:
        numbers["flat_from"] = table.factor.at(series.points[shape.plateau][0])
        numbers["spread_where_flat"] = round(shape.spread, 4)
    cells = tuple(cell.name for _, cell in series.points)
    tail = any(is_tail(metric) for metric in metrics)
    return Finding(identity, topic, claim, numbers, cells, _caveats(table, cells, tail=tail))


def _caveats(table: Table, names: Sequence[str], *, tail: bool = False) -> tuple[str, ...]:
    """What weakens a comparison of these cells: single runs, and settings that moved with the factor."""
    cells = [cell for cell in table.cells if cell.name in names]
    caveats: list[str] = []
    if any(len(cell.runs) < 2 for cell in cells):
        tails = f" ({percent(ONE_RUN_TAIL_ALLOWANCE)} in a p99)" if tail else ""
        caveats.append(f"One run a cell: differences up to {percent(ONE_RUN_ALLOWANCE)}{tails} count as noise.")
    moved: dict[str, list[str]] = {}
    for cell in cells:
        for key, (_, used) in cell.substituted.items():
            moved.setdefault(key, []).append(f"{used} in {cell.name}")
    caveats += [f"Another setting moved with the factor: {key} is {listed(where)}." for key, where in moved.items()]
    return tuple(caveats)
