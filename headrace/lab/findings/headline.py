"""The one finding that a reader takes away: which setting, why, and how sure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from headrace.lab.findings.best import best_cells
from headrace.lab.findings.finding import Finding
from headrace.lab.findings.stats import ratio
from headrace.lab.findings.table import STRANGER, Table, describe, mean, means
from headrace.lab.findings.trust import disturbed
from headrace.lab.findings.words import METRIC_WORDS, names, percent, plural, quantity
from headrace.lab.records.results import Cell, Json

# Throughput decides first; among ties the latencies do, a doubling of one weighing as much as of the other.
_THROUGHPUT = ("output_throughput", "total_token_throughput", "request_throughput")
_TRADE = (("p99_tpot_ms", "p99_itl_ms", "mean_tpot_ms"), ("mean_ttft_ms", "median_ttft_ms"))


@dataclass(frozen=True, slots=True)
class Choice:
    """The recommended cell.  `ties` (without it) are as good in throughput; `alike` are those of them that no latency
    tells apart from it either."""

    cell: Cell
    ties: tuple[Cell, ...]
    alike: tuple[Cell, ...]
    metric: str


def choose(table: Table) -> Choice | None:
    """Rank the cells that carried the same load; None when there are not two of them, or no throughput."""
    cells = table.same_load
    metric = _shared(_THROUGHPUT, cells)
    if len(cells) < 2 or metric is None:
        return None
    ranked = best_cells(table, metric)
    if ranked is None:
        return None
    tied = [cell for cell in cells if cell is ranked.best or cell in ranked.tied]
    cell = _by_latency(tied) or ranked.best
    ties = tuple(one for one in tied if one is not cell)
    return Choice(cell, ties, tuple(one for one in ties if not _told_apart(cell, one, len(ties))), metric)


def headline(table: Table) -> Finding:
    """A recommendation with its reason, or one sentence on why there is none."""
    if len(table.cells) < 2:
        return _nothing(table)
    metric = _shared(_THROUGHPUT, table.cells)
    if metric is None:
        return Finding("headline", "throughput", "No throughput in the figures: no setting can be recommended.")
    choice = choose(table)
    if choice is None:
        return _load_only(table, metric)
    if len(choice.alike) + 1 == len(table.same_load):
        return _indifferent(table, choice)
    return _recommendation(table, choice)


def _recommendation(table: Table, choice: Choice) -> Finding:
    cell, metric = choice.cell, choice.metric
    value = mean(cell, metric) or 0.0
    ranked = (cell, *choice.ties)
    single = any(len(one.runs) < 2 for one in ranked)
    numbers: dict[str, Json] = {"metric": metric, "value": value, "ties": [one.name for one in choice.ties]}
    alike = f" (or {names([one.name for one in choice.alike])}, which nothing tells apart from it)"
    claim = f"Use {describe(cell, table.factor)}{alike if choice.alike else ''}: {quantity(metric, value)}"
    rest = [one for one in choice.ties if one not in choice.alike]
    if rest:
        tied = means(ranked, metric) or [value]
        width = max(tied) / min(tied) - 1
        numbers["tie_spread"] = round(width, 4)
        claim += (
            f", a tie with {plural(len(choice.ties), 'other cell')} (all within {percent(width)}), and the best "
            f"latency trade among them: {_trade_reasons(cell, rest, numbers)}. The order of the ties in throughput is "
            f"not settled{' by one run a cell' if single else ''}"
        )
        sure = _sure_latency(cell, rest)
        claim += f"; the difference in {METRIC_WORDS[sure]} is larger than noise." if sure else "."
    else:
        behind = [one for one in table.same_load if one not in ranked]
        runner_up = max(behind, key=lambda one: mean(one, metric) or 0.0)
        lead = value / (mean(runner_up, metric) or value) - 1
        numbers["lead"] = round(lead, 4)
        claim += f", {percent(lead)} above the next best ({runner_up.name}), more than noise explains."
    caveats: list[str] = []
    if single:
        advice = (
            "the tied cells, interleaved, before relying on their order" if choice.ties else "it before relying on it"
        )
        caveats.append(f"One run a cell: repeat {advice}.")
    if cell.substituted:
        changed = ", ".join(f"{key} {used} instead of {wanted}" for key, (wanted, used) in cell.substituted.items())
        caveats.append(f"{cell.name} also has {changed}.")
    shaky = disturbed(table.same_load)
    if shaky:
        caveats.append(f"{len(shaky)} of {len(table.same_load)} compared cells carry warnings about their runs.")
    if any(run.settings.get("profile") is True for run in cell.runs):
        caveats.append("Measured under a profiler: expect better absolute figures without it.")
    return Finding("headline", "throughput", claim, numbers, tuple(one.name for one in ranked), tuple(caveats))


def _indifferent(table: Table, choice: Choice) -> Finding:
    cells = table.same_load
    values = means(cells, choice.metric) or [1.0]
    width = max(values) / min(values) - 1
    claim = (
        f"No setting is better than another: {METRIC_WORDS[choice.metric]} lies within {percent(width)} in all "
        f"{len(cells)} cells ({quantity(choice.metric, min(values))} to {quantity(choice.metric, max(values))}), and "
        "no latency tells them apart."
    )
    single = any(len(one.runs) < 2 for one in cells)
    caveats = ("One run a cell: repeats could show smaller differences.",) if single else ()
    numbers: dict[str, Json] = {"metric": choice.metric, "tie_spread": round(width, 4)}
    return Finding("headline", "throughput", claim, numbers, tuple(one.name for one in cells), caveats)


def _nothing(table: Table) -> Finding:
    total = len(table.study.cells)
    numbers: dict[str, Json] = {"cells": total}
    if not table.cells:
        invalid = [cell for cell, _ in table.left_out if cell.runs and all(run.invalid for run in cell.runs)]
        why = f"none of {plural(total, 'cell')} served its whole workload"
        if invalid:
            why = f"the runs of {names([cell.name for cell in invalid])} are INVALID"
            why += "" if len(invalid) == total else ", and no other cell served its whole workload"
        claim = f"No cell can be compared: {why}."
        return Finding("headline", "comparability", claim, numbers)
    cell = table.cells[0]
    figures = [
        f"{METRIC_WORDS[metric]} {quantity(metric, value)}"
        for metric in ("output_throughput", "mean_ttft_ms", "median_tpot_ms")
        if (value := mean(cell, metric)) is not None
    ]
    strangers = any(why == STRANGER for _, why in table.left_out)
    why = "No two cells had the same workload on the same model" if strangers else f"Only {cell.name} is usable"
    claim = f"{why}, so there is nothing to compare"
    claim += f" ({cell.name}: {', '.join(figures)})." if figures else "."
    return Finding("headline", "comparability", claim, numbers, (cell.name,))


def _load_only(table: Table, metric: str) -> Finding:
    values: dict[str, Json] = {cell.name: mean(cell, metric) for cell in table.cells}
    best = max(table.cells, key=lambda cell: mean(cell, metric) or 0.0)
    claim = (
        f"The cells differ in load, so there is no setting to recommend; {METRIC_WORDS[metric]} is highest in "
        f"{best.name} ({quantity(metric, mean(best, metric) or 0.0)})."
    )
    return Finding("headline", "throughput", claim, {metric: values}, tuple(cell.name for cell in table.cells))


def _by_latency(ties: Sequence[Cell]) -> Cell | None:
    """The tie with the smallest sum of logarithms of its latencies; None when no latency is in every cell."""
    usable = [means(ties, name) or [] for options in _TRADE if (name := _shared(options, ties)) is not None]
    if not usable:
        return None
    scores = [sum(math.log(values[index]) for values in usable) for index in range(len(ties))]
    return ties[scores.index(min(scores))]


def _told_apart(one: Cell, other: Cell, comparisons: int) -> bool:
    """Some latency of the trade differs by more than noise."""
    metrics = [name for options in _TRADE if (name := _shared(options, [one, other])) is not None]
    found = [ratio(metric, one, other, comparisons) for metric in metrics]
    return any(value is not None and value.distinct for value in found)


def _trade_reasons(cell: Cell, others: Sequence[Cell], numbers: dict[str, Json]) -> str:
    parts: list[str] = []
    for options in _TRADE:
        metric = _shared(options, [cell, *others])
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
    metric = _shared(_TRADE[0], [cell, *others])
    if metric is None:
        return None
    found = [ratio(metric, cell, other, len(others)) for other in others]
    return metric if all(one is not None and one.distinct and one.value > 1 for one in found) else None


def _shared(options: Sequence[str], cells: Sequence[Cell]) -> str | None:
    """The first of the metrics that every cell has."""
    return next((name for name in options if means(cells, name) is not None), None)
