"""Several runs on one server are no repeats: what a restart changes, they share.  So the restart is the unit here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from headrace.lab.findings.finding import Finding
from headrace.lab.findings.words import METRIC_WORDS, percent
from headrace.lab.records.results import Cell, Json, RunResult

ON_SERVER = "run_on_server"
_METRICS = ("output_throughput", "mean_ttft_ms", "median_tpot_ms", "p99_itl_ms")


def by_restart(cell: Cell) -> Cell:
    """The cell with one result for each of its servers: the mean of the runs on it.  As it is, where every run has a
    server of its own."""
    if not any(ON_SERVER in run.settings for run in cell.runs):
        return cell
    groups: dict[Json, list[RunResult]] = {}
    for run in cell.runs:
        groups.setdefault(run.settings.get("repeat"), []).append(run)
    return replace(cell, runs=tuple(map(_mean, groups.values())))


def levels(cells: Sequence[Cell]) -> list[Finding]:
    """How much of the noise comes with a restart, and how much is there between the runs on one server."""
    rows: dict[str, tuple[float, float]] = {}
    for metric in _METRICS:
        found = _components(metric, cells)
        if found is not None:
            rows[metric] = found
    if not rows:
        return []
    parts = [
        f"{METRIC_WORDS[metric]} {percent(between)} between restarts and {percent(within)} within one server"
        for metric, (between, within) in rows.items()
    ]
    restarts = sum(between > within for between, within in rows.values())
    advice = "more restarts" if 2 * restarts >= len(rows) else "more runs on each server"
    claim = f"Standard deviation of one run: {'; '.join(parts)}. To lessen the noise, {advice} pay most."
    numbers: dict[str, Json] = {
        metric: {"between_restarts": round(between, 5), "within_a_server": round(within, 5)}
        for metric, (between, within) in rows.items()
    }
    names = tuple(cell.name for cell in cells if _table(_METRICS[0], cell) is not None)
    caveats = ("Runs on one server count as one repeat in every comparison: their mean.",)
    return [Finding("noise.levels", "comparability", claim, numbers, names, caveats)]


def _mean(runs: Sequence[RunResult]) -> RunResult:
    first = runs[0]
    shared = [key for key in first.metrics if all(key in run.metrics for run in runs)]
    return replace(
        first,
        settings={key: value for key, value in first.settings.items() if key != ON_SERVER},
        metrics={key: sum(run.metrics[key] for run in runs) / len(runs) for key in shared},
        warnings=tuple(dict.fromkeys(warning for run in runs for warning in run.warnings)),
    )


def _components(metric: str, cells: Sequence[Cell]) -> tuple[float, float] | None:
    """Relative standard deviation (between restarts, within a server), pooled over the cells; None without data.

    Of the runs on one server each has requests of its own, the same ones on every server: what they change is taken
    out (a two-way table of servers and runs).  The variance between restarts is what the servers' means vary by beyond
    what the runs on them explain.
    """
    within = between = 0.0
    freedom_within = freedom_between = 0
    weight = 0.0
    for cell in cells:
        table = _table(metric, cell)
        if table is None:
            continue
        servers, runs = len(table), len(table[0])
        rows = [sum(row) / runs for row in table]
        columns = [sum(column) / servers for column in zip(*table, strict=True)]
        grand = sum(rows) / servers
        within += sum(
            (value - row - column + grand) ** 2
            for values, row in zip(table, rows, strict=True)
            for value, column in zip(values, columns, strict=True)
        )
        freedom_within += (servers - 1) * (runs - 1)
        between += runs * sum((row - grand) ** 2 for row in rows)
        freedom_between += servers - 1
        weight += runs * (servers - 1)
    if not freedom_within:
        return None
    mean_within = within / freedom_within
    excess = max(0.0, between / freedom_between - mean_within) / (weight / freedom_between)
    return math.sqrt(excess), math.sqrt(mean_within)


def _table(metric: str, cell: Cell) -> list[list[float]] | None:
    """Logarithms, one row a server and one column a run on it; None unless it is at least two by two, and whole."""
    rows: dict[Json, dict[Json, float]] = {}
    for run in cell.runs:
        value, number = run.metrics.get(metric), run.settings.get(ON_SERVER)
        if number is None or value is None or value <= 0:
            return None
        rows.setdefault(run.settings.get("repeat"), {})[number] = math.log(value)
    if len(rows) < 2 or any(row.keys() != next(iter(rows.values())).keys() for row in rows.values()):
        return None
    table = [[row[number] for number in sorted(row)] for row in rows.values()]
    return table if len(table[0]) >= 2 else None
