"""A study and its findings -> what a page shows.  Frozen values, no HTML, no Plotly.

Nothing is judged here: claims, what may be compared and how far a tie reaches come from findings, statuses from the
study.  This module only picks, groups and words them, and states n everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from headrace.lab.findings.best import best_cells
from headrace.lab.findings.finding import Finding
from headrace.lab.findings.table import Table, build, sample, why_invalid
from headrace.lab.records.results import Cell, CellStatus, RunResult, Study
from headrace.lab.report.text import count, fact, flatten, joined_units, number, plain, show
from headrace.lab.report.view import (
    ITL,
    OUTPUT_RATE,
    ROLE_WORDS,
    SIMULATED_COLUMNS,
    TOTAL_RATE,
    TPOT,
    TTFT,
    UNSTATED_ROLE,
    Banner,
    Best,
    CellView,
    FindingView,
    Metric,
    SimulatedView,
    StudyView,
    Value,
)

BUDGET, CHUNKED = "max_num_batched_tokens", "enable_chunked_prefill"
# Settings that say where a cell's run came from, not how the server was set.
_INCIDENTAL = ("repeat", "source", "seed", "implied", "metadata", "date", "progress_elapsed_s")


def study_view(study: Study, findings: Sequence[Finding], index: int = 0) -> StudyView:
    """The view of one study; `index` keeps the anchors of several studies in one page apart."""
    table = build(study)
    study = table.study  # its cells also have the settings that only their runs state
    left_out = {id(cell): reason for cell, reason in table.left_out}
    not_counted: dict[str, list[RunResult]] = {}
    for name, run in table.not_counted:
        not_counted.setdefault(name, []).append(run)
    factor = _factor(table)
    cells = tuple(
        _cell_view(
            cell,
            f"s{index}c{place}",
            left_out.get(id(cell), ""),
            factor,
            [*not_counted.get(cell.name, ()), *(run for name, run in table.set_aside if name == cell.name)],
        )
        for place, cell in enumerate(study.cells)
    )
    views = {id(cell): view for view, cell in zip(cells, study.cells, strict=True)}
    # What the headline ranks by: output throughput, or the total where a cell lacks it.
    rate = OUTPUT_RATE if all(OUTPUT_RATE.key in views[id(cell)].values for cell in table.same_load) else TOTAL_RATE
    anchors: dict[str, str] = {}
    for cell in cells:
        anchors.setdefault(cell.name, cell.anchor)
    common, varying = _split_settings(study.cells)
    return StudyView(
        anchor=f"s{index}",
        name=plain(study.name, 120),
        title=plain(study.title or study.name, 200),
        kind=plain(study.kind, 40),
        banner=_banner(cells, sum(map(len, not_counted.values()))),
        common=common,
        varying=varying,
        factor=plain(factor, 80),
        cells=cells,
        findings=tuple(_finding_view(finding, anchors) for finding in findings),
        best=tuple(best for metric in (rate, TTFT[0], TPOT[1], ITL[2]) if (best := _best(metric, table, views))),
        facts=tuple(fact(plain(name, 200), plain(text)) for name, text in flatten(study.facts)),
        simulated=tuple(_simulated_view(row, anchors) for row in study.simulation.get("cells", ())),
        simulated_words=_simulated_words(study.simulation),
    )


def _simulated_view(row: Mapping[str, Any], anchors: Mapping[str, str]) -> SimulatedView:
    values = {}
    for metric in SIMULATED_COLUMNS:
        if metric.key in row["metrics"]:
            figures = row["metrics"][metric.key]
            measured, simulated = float(figures["measured"]), float(figures["simulated"])
            low, high = figures["interval"]
            error = simulated / measured - 1 if measured else 0.0
            values[metric.key] = (measured, simulated, error, low <= measured <= high)
    name = plain(row["cell"], 120)
    return SimulatedView(name, anchors.get(name), row.get("calibration") is True, values)


def _simulated_words(simulation: Mapping[str, Any]) -> str:
    if "reason" in simulation:
        return plain(str(simulation["reason"]))
    if not simulation.get("cells"):
        return ""
    if simulation.get("halves") is True:
        return "calibrated on every second request of each cell"
    return plain(f"calibrated on {', '.join(map(str, simulation.get('calibrated_on', ())))}; the others are predicted")


def _cell_view(cell: Cell, anchor: str, left_out: str, factor: str, not_counted: Sequence[RunResult] = ()) -> CellView:
    chunked = cell.settings.get(CHUNKED)
    role = ROLE_WORDS[chunked][0] if isinstance(chunked, bool) else UNSTATED_ROLE[0]
    x = _factor_value(cell, factor)
    keys = dict.fromkeys(key for run in cell.runs for key in run.metrics)
    values = {key: value for key in keys if (value := _value(cell, key))}
    return CellView(
        anchor=anchor,
        name=plain(cell.name, 120),
        status=cell.status,
        role=role,
        x=x,
        x_words=_factor_words(factor, x),
        comparable=not left_out,
        left_out=plain(left_out),
        rule=plain(cell.rule or "", 40),
        reason=plain(cell.reason or ""),
        values=values,
        settings={plain(key, 80): plain(value, 400) for key, value in cell.settings.items()},
        substituted=plain(
            "; ".join(f"{flag}: {show(wanted)} → {show(used)}" for flag, (wanted, used) in cell.substituted.items())
        ),
        implied=_implied(cell),
        warnings=tuple(
            dict.fromkeys(
                [f"not counted, {_why_not(run)}" for run in not_counted]
                + [plain(text) for run in cell.runs for text in run.warnings]
            )
        ),
        sources=tuple(plain(run.source, 400) for run in cell.runs),
        n_runs=len(cell.runs),
    )


def _why_not(run: RunResult) -> str:
    source = plain(run.source, 400)
    return f"INVALID: {source}: {plain(why_invalid(run))}" if run.invalid else f"disturbed by other processes: {source}"


def _factor(table: Table) -> str:
    """What the findings take as the factor; where nothing varies, the budget if a cell that may be compared (or,
    without any such cell, any cell) states one."""
    if table.factor is not None:
        return table.factor.key
    return BUDGET if any(_factor_value(cell, BUDGET) for cell in table.cells or table.study.cells) else ""


def _factor_value(cell: Cell, factor: str) -> float | None:
    value = cell.settings.get(factor)
    if value in ("inf", math.inf):
        return math.inf
    found = number(value)
    return found if found is not None and found > 0 else None


def _factor_words(factor: str, x: float | None) -> str:
    name = "budget" if factor == BUDGET else factor or "budget"
    return f"{name} not stated" if x is None else f"{name} {x:.10g}"


def _value(cell: Cell, key: str) -> Value | None:
    runs = sample(cell, key)
    return Value(sum(runs) / len(runs), min(runs), max(runs), runs) if runs else None


def _implied(cell: Cell) -> tuple[str, ...]:
    implied = cell.settings.get("implied") or next(
        (run.settings["implied"] for run in cell.runs if "implied" in run.settings), None
    )
    return tuple(f"{name}: {text}" for name, text in flatten(implied)) if isinstance(implied, Mapping) else ()


def _finding_view(finding: Finding, anchors: Mapping[str, str]) -> FindingView:
    return FindingView(
        id=plain(finding.id, 120),
        topic=plain(finding.topic, 40),
        claim=joined_units(plain(finding.claim)),
        numbers=tuple((plain(name, 200), plain(text)) for name, text in flatten(finding.numbers)),
        cells=tuple((plain(name, 120), anchors.get(plain(name, 120))) for name in finding.cells),
        caveats=tuple(joined_units(plain(caveat)) for caveat in finding.caveats),
    )


def _split_settings(cells: Sequence[Cell]) -> tuple[tuple[tuple[str, str], ...], tuple[str, ...]]:
    """Settings that all cells share (name, text), and the names of those that differ or are not stated everywhere."""
    names = dict.fromkeys(key for cell in cells for key in cell.settings if key not in _INCIDENTAL)
    common, varying = [], []
    for name in names:
        texts = {plain(cell.settings[name], 400) if name in cell.settings else None for cell in cells}
        if len(texts) == 1 and len(cells) > 1:
            common.append((plain(name, 80), str(texts.pop())))
        else:
            varying.append(plain(name, 80))
    return tuple(common), tuple(varying)


def _banner(cells: Sequence[CellView], invalid_runs: int) -> Banner:
    """Short reasons only; the findings on comparability tell the whole story."""
    comparable = [cell for cell in cells if cell.comparable]
    dropped = [f"{count(invalid_runs, 'run')} INVALID: not counted."] if invalid_runs else []
    reasons = (*_status_reasons(cells), *dropped, *_repeat_reasons(comparable), *_warning_reasons(cells))
    if not comparable:
        return Banner("bad", "Nothing to compare" if cells else "No cells", reasons or ("No cell was measured.",))
    illegal = sum(cell.status is CellStatus.ILLEGAL for cell in cells)
    marked = (f"{count(illegal, 'cell')} illegal: marked with the rule, not compared.",) if illegal else ()
    shown = f"{len(comparable)} of {count(len(cells), 'cell')} comparable"
    level, words = ("care", "Read with care: ") if reasons else ("good", "")
    return Banner(level, f"{words}{shown}", (*reasons, *marked))


def _status_reasons(cells: Sequence[CellView]) -> list[str]:
    tally = (
        (sum(cell.status is CellStatus.FAILED for cell in cells), "failed."),
        (
            sum(cell.status is CellStatus.DEGRADED for cell in cells),
            "served less than the whole workload: left out of comparisons.",
        ),
        (
            sum(cell.ran and not cell.comparable for cell in cells),
            "measured, but not comparable with the others: left out of comparisons.",
        ),
        (sum(cell.status is CellStatus.SUBSTITUTED for cell in cells), "ran with other settings changed as well."),
        (sum(cell.status is CellStatus.PENDING for cell in cells), "not run yet."),
    )
    return [f"{count(number_, 'cell')} {words}" for number_, words in tally if number_]


def _repeat_reasons(comparable: Sequence[CellView]) -> list[str]:
    if comparable and all(cell.n_runs == 1 for cell in comparable):
        return ["One run a cell: differences of a few per cent cannot be told from noise."]
    if any(cell.n_runs == 1 for cell in comparable):
        return ["Some cells have a single run: their spread is unknown."]
    return []


def _warning_reasons(cells: Sequence[CellView]) -> list[str]:
    """A warning that all measured cells share is said once; others are counted."""
    measured = [cell for cell in cells if cell.n_runs]
    shared = [text for text in (measured[0].warnings if measured else ()) if all(text in c.warnings for c in measured)]
    others = sum(bool(set(cell.warnings) - set(shared)) for cell in measured)
    counted = [f"{count(others, 'cell')} with warnings, listed under provenance."] if others else []
    return [f"Every run: {text}" for text in shared] + counted


def _best(metric: Metric, table: Table, views: Mapping[int, CellView]) -> Best | None:
    found = best_cells(table, metric.key)
    if found is None or found.undecided:
        return None  # no cell is called best, and none a tie, where the noise hides it
    best = views[id(found.best)]
    tied = tuple(views[id(cell)] for cell in found.tied)
    return Best(metric, best, best.values[metric.key], tied, found.within, found.basis)


def as_json(value: Any) -> Any:
    """A JSON value without NaN or Infinity (which strict parsers refuse): they become null."""
    if isinstance(value, float) and number(value) is None:
        return None
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return value
