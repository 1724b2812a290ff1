"""Chunked prefill on against off, at every value of the factor that has both."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.lab.findings.compare import MAX_QUOTED, caveats_of, resolution
from headrace.lab.findings.finding import Finding
from headrace.lab.findings.stats import Ratio, ratio, too_noisy
from headrace.lab.findings.table import Factor, Series, Table, mean
from headrace.lab.findings.words import METRIC_WORDS, listed, percent, quantity, sentence
from headrace.lab.records.results import Cell, Json

PAIRED_METRICS = ("duration", "output_throughput", "mean_ttft_ms")
PAIRED_TAIL = "p99_tpot_ms"

Pair = tuple[float, Cell, Cell, Ratio]  # x, cell with chunked prefill, cell without, the ratio without/with


def on_off(table: Table) -> list[Finding]:
    """Chunked prefill on against off, at every value of the factor that has both."""
    if table.factor is None:
        return []
    found: list[Finding] = []
    for number, (on, common) in enumerate(matched(table)):
        # a study over several models or loads has a pair of series for each
        suffix = "" if number == 0 else f".{number + 1}"
        found += _outcome_pairs(table, table.factor, on, common, suffix)
        found += _tail_pairs(table, table.factor, common, suffix)
    return found


def matched(table: Table) -> list[tuple[Series, list[tuple[float, Cell, Cell]]]]:
    """The series with chunked prefill, with the cells that it and its opposite have at the same values."""
    found = []
    for on, off in _opposites(table.series):
        partner = dict(off.points)
        common = [(x, cell, partner[x]) for x, cell in on.points if x in partner]
        if common:
            found.append((on, common))
    return found


def hidden(metric: str, row: Pair) -> bool:
    """No difference seen, and none that could have been."""
    return not row[3].distinct and too_noisy(metric, row[3].noise)


def _outcome_pairs(
    table: Table, factor: Factor, on: Series, common: Sequence[tuple[float, Cell, Cell]], suffix: str
) -> list[Finding]:
    by_metric = {metric: ratios(metric, common) for metric in PAIRED_METRICS}
    by_metric = {metric: rows for metric, rows in by_metric.items() if len(rows) == len(common)}
    if not by_metric:
        return []
    every = [row for rows in by_metric.values() for row in rows]
    numbers: dict[str, Json] = {
        f"off_over_on.{metric}.{factor.at(x)}": round(found.value, 4)
        for metric, rows in by_metric.items()
        for x, _, _, found in rows
    }
    clear = {m: rows for m, rows in by_metric.items() if not any(hidden(m, row) for row in rows)}
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
    caveats = caveats_of(table, cells)
    if alike and clear:
        caveats += tuple(resolution(both, [found.noise for rows in clear.values() for *_, found in rows]))
    return [Finding(f"chunking.outcome{suffix}", "chunking", " ".join(claims), numbers, cells, caveats)]


def _tail_pairs(table: Table, factor: Factor, common: Sequence[tuple[float, Cell, Cell]], suffix: str) -> list[Finding]:
    metric = PAIRED_TAIL
    rows = ratios(metric, common)
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
    caveats = caveats_of(table, cells, tail=True)
    return [Finding(f"chunking.tpot-tail{suffix}", "chunking", f"{claim}.", numbers, cells, caveats)]


def ratios(metric: str, common: Sequence[tuple[float, Cell, Cell]]) -> list[Pair]:
    among = [cell for _, one, other in common for cell in (one, other)]
    found = [(x, one, other, ratio(metric, one, other, len(common), among)) for x, one, other in common]
    return [(x, one, other, value) for x, one, other, value in found if value is not None]


def _different(metric: str, factor: Factor, rows: Sequence[Pair]) -> str:
    signs = {found.value > 1 for *_, found in rows}
    more, less = ("longer", "shorter") if metric == "duration" else ("higher", "lower")
    how = "differs" if len(signs) > 1 else f"is {more if signs.pop() else less}"
    return f"Without chunked prefill {METRIC_WORDS[metric]} {how}: {_against(metric, factor, rows)} {factor.unit}."


def _against(metric: str, factor: Factor, rows: Sequence[Pair]) -> str:
    return listed(
        [
            f"{quantity(metric, mean(other, metric) or 0.0)} against {quantity(metric, mean(one, metric) or 0.0)} at "
            f"{factor.at(x)}"
            for x, one, other, _ in rows[:MAX_QUOTED]
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
