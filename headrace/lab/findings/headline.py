"""The one finding that a reader takes away: which setting, why, and how sure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from headrace.lab.findings.best import BestCells, best_cells
from headrace.lab.findings.compare import restless
from headrace.lab.findings.finding import Finding
from headrace.lab.findings.run_warnings import others_took, warned
from headrace.lab.findings.stats import ratio
from headrace.lab.findings.table import STRANGER, Table, describe, mean, means
from headrace.lab.findings.words import METRIC_WORDS, names, noise, percent, plural, quantity, sentence
from headrace.lab.records.results import Cell, Json

# Throughput decides first; among ties the latencies do, a doubling of one weighing as much as of the other.
_THROUGHPUT = ("output_throughput", "total_token_throughput", "request_throughput")
_TRADE = (("p99_tpot_ms", "p99_itl_ms", "mean_tpot_ms"), ("mean_ttft_ms", "median_ttft_ms"))


@dataclass(frozen=True, slots=True)
class Choice:
    """The recommended cell.  `ties` (without it) are as good in throughput; `alike` are those of them that no latency
    tells apart from it either.  `ranked` is how the cells stand in throughput alone."""

    cell: Cell
    ties: tuple[Cell, ...]
    alike: tuple[Cell, ...]
    ranked: BestCells

    @property
    def metric(self) -> str:
        return self.ranked.metric

    @property
    def noise(self) -> float:
        return self.ranked.noise


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
    alike = tuple(one for one in ties if not _told_apart(cell, one, ties))
    return Choice(cell, ties, alike, ranked)


def headline(table: Table) -> Finding:
    """A recommendation with its reason, or one sentence on why there is none; then what other processes took."""
    found = _verdict(table)
    took = others_took(table)
    if took is None:
        return found
    return replace(found, claim=f"{found.claim} {took} Repeat them on a quiet machine.")


def _verdict(table: Table) -> Finding:
    if len(table.cells) < 2:
        return _nothing(table)
    metric = _shared(_THROUGHPUT, table.cells)
    if metric is None:
        return Finding("headline", "throughput", "No throughput in the figures: no setting can be recommended.")
    choice = choose(table)
    if choice is None:
        return _load_only(table, metric)
    if choice.ranked.undecided:
        return _undecided(table, choice)
    if unrest := _unrest(table, choice):
        return unrest
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
        reach = f"the {percent(choice.noise)} that single runs may differ by" if single else "noise explains"
        claim += f", {percent(lead)} above the next best ({runner_up.name}), more than {reach}."
    caveats: list[str] = []
    if single:
        advice = (
            "the tied cells, interleaved, before relying on their order" if choice.ties else "it before relying on it"
        )
        caveats.append(f"One run a cell: repeat {advice}.")
    if cell.substituted:
        changed = ", ".join(f"{key} {used} instead of {wanted}" for key, (wanted, used) in cell.substituted.items())
        caveats.append(f"{cell.name} also has {changed}.")
    shaky = warned(table.same_load)
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
    smaller = f"Differences below {percent(choice.noise)} would not show."
    caveats = ("One run a cell: repeats could show smaller differences." if single else smaller,)
    numbers: dict[str, Json] = {"metric": choice.metric, "tie_spread": round(width, 4)}
    return Finding("headline", "throughput", claim, numbers, tuple(one.name for one in cells), caveats)


def _undecided(table: Table, choice: Choice) -> Finding:
    """Noise hides which of the best is best: what can be said is which cells are behind."""
    what = METRIC_WORDS[choice.metric]
    tied = (choice.cell, *choice.ties)
    behind = [one for one in table.same_load if one not in tied]
    values = means(tied, choice.metric) or [1.0]
    numbers: dict[str, Json] = {
        "metric": choice.metric,
        "noise": round(choice.noise, 4),
        "tie_spread": round(max(values) / min(values) - 1, 4),
    }
    claim = (
        f"Which setting is best cannot be decided: run-to-run noise in {what} is {noise(choice.noise)}, and "
        f"{'the' if behind else 'all'} {plural(len(tied), 'cell')} {'ahead ' if behind else ''}lie within it "
        f"({quantity(choice.metric, min(values))} to {quantity(choice.metric, max(values))})."
    )
    if behind:
        verb = "is" if len(behind) == 1 else "are"
        claim += f" Only {names([one.name for one in behind])} {verb} slower by more than that."
    if others_took(table) is None:
        claim += " Repeat on a quieter machine, or with more repeats."
    return Finding("headline", "throughput", claim, numbers, tuple(one.name for one in table.same_load))


def _unrest(table: Table, choice: Choice) -> Finding | None:
    """Single runs that go up and down over the factor by more than the best is ahead."""
    best, *rest = sorted(((mean(one, choice.metric) or 0.0), one.name) for one in table.same_load)[::-1]
    size = restless(table, choice.metric)
    if table.factor is None or size == 0 or best[0] > rest[0][0] * (1 + size):
        return None
    values = [value for value, _ in (best, *rest)]
    claim = (
        f"Which setting is best cannot be decided: over the {table.factor.noun} the single runs go up and down by more "
        f"than {percent(size)}, which shows the machine more than the setting. {sentence(METRIC_WORDS[choice.metric])} "
        f"is highest in {best[1]} ({quantity(choice.metric, best[0])}, {rest[0][1]} "
        f"{quantity(choice.metric, rest[0][0])}): repeat the cells, interleaved, on a quiet machine."
    )
    numbers: dict[str, Json] = {
        "metric": choice.metric, "noise": round(size, 4), "tie_spread": round(max(values) / min(values) - 1, 4)
    }  # fmt: skip
    cells = tuple(one.name for one in table.same_load)
    return Finding("headline", "throughput", claim, numbers, cells, ("One run a cell.",))


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
    if any(why == STRANGER for _, why in table.left_out):
        why = "No two cells had the same workload on the same model"
    else:
        why = "The study has one cell" if total == 1 else f"Of {total} cells only one could be measured"
    claim = f"{why}, so there is nothing to compare"
    claim += f". {cell.name}: {', '.join(figures)}." if figures else f" ({cell.name})."
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


def _told_apart(one: Cell, other: Cell, ties: Sequence[Cell]) -> bool:
    """Some latency of the trade differs by more than noise."""
    metrics = [name for options in _TRADE if (name := _shared(options, [one, other])) is not None]
    found = [ratio(metric, one, other, len(ties), (one, *ties)) for metric in metrics]
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
    found = [ratio(metric, cell, other, len(others), (cell, *others)) for other in others]
    return metric if all(one is not None and one.distinct and one.value > 1 for one in found) else None


def _shared(options: Sequence[str], cells: Sequence[Cell]) -> str | None:
    """The first of the metrics that every cell has."""
    return next((name for name in options if means(cells, name) is not None), None)
