"""The one finding that a reader takes away: which setting, why, and how sure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from headrace.lab.findings.finding import Finding
from headrace.lab.findings.stats import allowance, ratio
from headrace.lab.findings.table import Table, describe, mean, means
from headrace.lab.findings.words import METRIC_WORDS, percent, plural, quantity
from headrace.lab.records.results import Cell, Json

# Throughput decides first; among ties the latencies do, a doubling of one weighing as much as of the other.
_THROUGHPUT = ("output_throughput", "total_token_throughput", "request_throughput")
_TRADE = (("p99_tpot_ms", "p99_itl_ms", "mean_tpot_ms"), ("mean_ttft_ms", "median_ttft_ms"))


def chosen_cell(table: Table) -> tuple[Cell, tuple[Cell, ...], str] | None:
    """(recommended cell, the cells it ties with, the throughput metric used); None when nothing can be ranked."""
    for metric in _THROUGHPUT:
        values = means(table.cells, metric)
        if values is None:
            continue
        best = table.cells[values.index(max(values))]
        ties = tuple(cell for cell in table.cells if cell is best or not _behind(table, metric, cell, best))
        return _by_latency(ties) or best, ties, metric
    return None


def headline(table: Table) -> Finding:
    """A recommendation with its reason, or one sentence on why there is none."""
    if len(table.cells) < 2:
        return _nothing(table)
    choice = chosen_cell(table)
    if choice is None:
        return Finding("headline", "throughput", "No throughput in the figures: no setting can be recommended.")
    cell, ties, metric = choice
    if table.factor is not None and table.factor.is_load and len(table.series) == 1:
        return _load_only(table, metric)
    value = mean(cell, metric) or 0.0
    others = [other for other in ties if other is not cell]
    claim = f"Use {describe(cell, table.factor)}: {quantity(metric, value)}"
    numbers: dict[str, Json] = {"metric": metric, "value": value, "ties": [other.name for other in others]}
    caveats: list[str] = []
    single = any(len(one.runs) < 2 for one in ties)
    if not others:
        runner_up = max((one for one in table.cells if one is not cell), key=lambda one: mean(one, metric) or 0.0)
        lead = value / (mean(runner_up, metric) or value) - 1
        numbers["lead"] = round(lead, 4)
        claim += f", {percent(lead)} above the next best ({runner_up.name}), more than noise explains."
    else:
        tied = [mean(one, metric) or value for one in ties]
        width = max(tied) / min(tied) - 1
        numbers["tie_spread"] = round(width, 4)
        reasons = _trade_reasons(cell, others, numbers)
        claim += f", a tie with {plural(len(others), 'other cell')} (all within {percent(width)})"
        claim += f", and the best latency trade among them: {reasons}." if reasons else "."
        claim += f" The order of the ties in throughput is not settled{' by one run a cell' if single else ''}"
        sure = _sure_latency(cell, others)
        claim += f"; the difference in {METRIC_WORDS[sure]} is larger than noise." if sure else "."
    if single:
        caveats.append("One run a cell: repeat the tied cells, interleaved, before relying on their order.")
    if cell.substituted:
        changed = ", ".join(f"{key} {used} instead of {wanted}" for key, (wanted, used) in cell.substituted.items())
        caveats.append(f"{cell.name} also has {changed}.")
    if any(run.settings.get("profile") is True for run in cell.runs):
        caveats.append("Measured under a profiler: expect better absolute figures without it.")
    return Finding("headline", "throughput", claim, numbers, tuple(one.name for one in (cell, *others)), tuple(caveats))


def _nothing(table: Table) -> Finding:
    total = len(table.study.cells)
    if not table.cells:
        claim = f"No cell can be compared: none of {plural(total, 'cell')} served its whole workload."
        return Finding("headline", "comparability", claim, {"cells": total})
    cell = table.cells[0]
    figures = [
        f"{METRIC_WORDS[metric]} {quantity(metric, value)}"
        for metric in ("output_throughput", "mean_ttft_ms", "median_tpot_ms")
        if (value := mean(cell, metric)) is not None
    ]
    claim = f"Only {cell.name} can be used, so there is nothing to compare it with"
    claim += f" ({', '.join(figures)})." if figures else "."
    return Finding("headline", "comparability", claim, {"cells": total}, (cell.name,))


def _load_only(table: Table, metric: str) -> Finding:
    assert table.factor is not None  # the caller has checked
    points = table.series[0].points
    values = {table.factor.at(x): mean(cell, metric) for x, cell in points}
    best_x, best = max(points, key=lambda point: mean(point[1], metric) or 0.0)
    claim = (
        f"The cells differ in load only, so there is no setting to recommend; {METRIC_WORDS[metric]} is highest at a "
        f"{table.factor.noun} of {table.factor.at(best_x)} ({quantity(metric, mean(best, metric) or 0.0)})."
    )
    return Finding("headline", "throughput", claim, {metric: values}, tuple(cell.name for _, cell in points))


def _behind(table: Table, metric: str, cell: Cell, best: Cell) -> bool:
    found = ratio(metric, cell, best)
    if found is None or found.basis == "single runs":
        return (mean(best, metric) or 0.0) > (mean(cell, metric) or 0.0) * (1 + allowance(metric, table.cells))
    return found.distinct and found.value > 1


def _by_latency(ties: Sequence[Cell]) -> Cell | None:
    """The tie with the smallest sum of logarithms of its latencies; None when no latency is in every cell."""
    usable = [values for names in _TRADE if (values := next(filter(None, (means(ties, name) for name in names)), None))]
    if not usable:
        return None
    scores = [sum(math.log(values[index]) for values in usable) for index in range(len(ties))]
    return ties[scores.index(min(scores))]


def _trade_reasons(cell: Cell, others: Sequence[Cell], numbers: dict[str, Json]) -> str:
    parts: list[str] = []
    for names in _TRADE:
        metric = next((name for name in names if means([cell, *others], name) is not None), None)
        if metric is None:
            continue
        own, rest = mean(cell, metric) or 0.0, means(others, metric) or []
        numbers[metric] = own
        span = quantity(metric, min(rest))
        if quantity(metric, max(rest)) != span:
            span += f" to {quantity(metric, max(rest))}"
        price = "at the price of " if parts and own > max(rest) else ""
        parts.append(f"{price}{METRIC_WORDS[metric]} {quantity(metric, own)} (the others {span})")
    return ", ".join(parts)


def _sure_latency(cell: Cell, others: Sequence[Cell]) -> str | None:
    """The first latency of the trade, where the chosen cell beats every tie in it by more than noise."""
    metric = next((name for name in _TRADE[0] if means([cell, *others], name) is not None), None)
    if metric is None:
        return None
    found = [ratio(metric, cell, other) for other in others]
    return metric if all(one is not None and one.distinct and one.value > 1 for one in found) else None
