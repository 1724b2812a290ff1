"""May these figures be believed, and which of them may be compared?"""

from __future__ import annotations

from collections.abc import Sequence

from headrace.lab.findings.disturbance import taken
from headrace.lab.findings.finding import Finding
from headrace.lab.findings.run_warnings import disturbed_runs, run_name, run_warnings
from headrace.lab.findings.stats import ONE_RUN_ALLOWANCE, ONE_RUN_TAIL_ALLOWANCE
from headrace.lab.findings.table import FACTORS, Table, mean, varying, why_invalid
from headrace.lab.findings.words import listed, names, number, percent, plural
from headrace.lab.records.comparable import shortfall
from headrace.lab.records.results import Cell, CellStatus, Json

# A progress bar shows whole seconds, cut off; one more covers the time around the bar.
_BAR_RESOLUTION_S = 2.0


def left_out(table: Table) -> list[Finding]:
    """Cells that ran but are kept out of every comparison, with the reason and what shows it."""
    ran = [(cell, why) for cell, why in table.left_out if cell.runs]
    short = [(cell, why) for cell, why in ran if _served(cell) is not None]
    found: list[Finding] = []
    if short:
        found.append(_short_cells(table, [cell for cell, _ in short]))
    others = [(cell, why) for cell, why in ran if _served(cell) is None]
    if others:
        by_reason: dict[str, list[str]] = {}
        for cell, why in others:
            by_reason.setdefault(why.rstrip("."), []).append(cell.name)
        text = "; ".join(f"{names(cells)} ({why})" for why, cells in by_reason.items())
        found.append(
            Finding(
                "comparability.left-out",
                "comparability",
                f"{plural(len(others), 'cell')} left out of all comparisons: {text}.",
                {},
                tuple(cell.name for cell, _ in others),
            )
        )
    return found + _invalid_runs(table)


def _invalid_runs(table: Table) -> list[Finding]:
    """Single runs that do not count, in cells that have others."""
    out = {cell.name for cell, _ in table.left_out}
    dropped = [(name, run) for name, run in table.not_counted if name not in out]
    if not dropped:
        return []
    by_reason: dict[str, list[str]] = {}
    for name, run in dropped:
        by_reason.setdefault(why_invalid(run), []).append(run_name(name, run))
    verb = "is" if len(dropped) == 1 else "are"
    text = "; ".join(f"{names(runs)} ({why})" for why, runs in by_reason.items())
    claim = f"{plural(len(dropped), 'run')} {verb} INVALID and not counted: {text}."
    cells = tuple(dict.fromkeys(name for name, _ in dropped))
    numbers: dict[str, Json] = {"sources": [run.source for _, run in dropped]}
    return [Finding("comparability.invalid-runs", "comparability", claim, numbers, cells)]


def not_measured(table: Table) -> list[Finding]:
    """Cells without a run: illegal ones by rule, and those that failed or were not reached."""
    found: list[Finding] = []
    illegal = [cell for cell in table.study.cells if cell.status is CellStatus.ILLEGAL]
    found += _illegal(table, "comparability.illegal", [c for c in illegal if not c.refused], "were not launched")
    found += _illegal(
        table, "comparability.refused", [c for c in illegal if c.refused], "were launched, and refused by the server"
    )
    for status, text in ((CellStatus.FAILED, "failed"), (CellStatus.PENDING, "not measured yet")):
        cells = [cell for cell in table.study.cells if cell.status is status and not cell.runs]
        if cells:
            reasons = [
                f"{cell.name} ({cell.reason.rstrip('.')})" if cell.reason and cell.reason != text else cell.name
                for cell in cells
            ]
            claim = f"{plural(len(cells), 'cell')} {text}: {names(reasons)}."
            found.append(
                Finding(f"comparability.{status.value}", "comparability", claim, {}, tuple(c.name for c in cells))
            )
    return found


def _illegal(table: Table, identity: str, illegal: Sequence[Cell], outcome: str) -> list[Finding]:
    if not illegal:
        return []
    by_rule: dict[str, list[Cell]] = {}
    for cell in illegal:
        by_rule.setdefault(cell.rule or "no rule named", []).append(cell)
    parts = [f"{rule}: {names([cell.name for cell in cells])} ({_example(cells)})" for rule, cells in by_rule.items()]
    numbers: dict[str, Json] = {rule: [cell.name for cell in cells] for rule, cells in by_rule.items()}
    verb = "is" if len(illegal) == 1 else "are"
    outcome = outcome.replace("were", "was") if len(illegal) == 1 else outcome
    claim = f"{len(illegal)} of {len(table.study.cells)} cells {verb} illegal and {outcome}. {'; '.join(parts)}."
    return [Finding(identity, "comparability", claim, numbers, tuple(cell.name for cell in illegal))]


def caveats(table: Table) -> list[Finding]:
    """What weakens every claim about this study."""
    return [
        *_single_run(table), *_confounders(table), *disturbed_runs(table), *run_warnings(table), *_profiler(table)
    ]  # fmt: skip


def _short_cells(table: Table, cells: Sequence[Cell]) -> Finding:
    numbers: dict[str, Json] = {}
    refused: list[str] = []
    for cell in cells:
        served, asked = _served(cell) or (0, 0)
        numbers[cell.name] = {"served": served, "asked": asked, "refused": asked - served, "rule": cell.rule}
        refused.append(f"{asked - served} of {asked}")
    verb, they = ("is", "It is") if len(cells) == 1 else ("are", "They are")
    claim = f"{names([cell.name for cell in cells])} {verb} not comparable: {names(refused)} requests failed"
    if all(cell.rule == "R13" for cell in cells):
        limits = names([str(cell.settings.get("max_model_len")) for cell in cells])
        claim += (
            f", because max_model_len ({limits}) refuses every request whose prompt and output together are longer "
            "(R13)"
        )
        usual = _tokens_per_request(table.cells)
        served_tokens = [value for cell in cells if (value := _tokens_per_request([cell])) is not None]
        if usual is not None and served_tokens:
            sizes = names([number(value) for value in served_tokens])
            claim += f"; what was served is a shorter workload ({sizes} tokens a request against {number(usual)})"
    elif cells[0].reason:
        claim += f" ({_example(cells)})"
    claim += f". {they} left out of all comparisons."
    return Finding("comparability.degraded", "comparability", claim, numbers, tuple(cell.name for cell in cells))


def _example(cells: Sequence[Cell]) -> str:
    # what is wrong, without what would mend it
    reason = (cells[0].reason or "no reason recorded").removeprefix(f"{cells[0].rule}: ")
    reason = reason.partition("; raise ")[0].rstrip(".")
    return reason if len(cells) == 1 else f"for example {cells[0].name}: {reason}"


def _tokens_per_request(cells: Sequence[Cell]) -> float | None:
    totals = [
        (a + b) / n
        for cell in cells
        if (a := mean(cell, "total_input_tokens")) is not None
        and (b := mean(cell, "total_output_tokens")) is not None
        and (n := mean(cell, "completed"))
    ]
    return sum(totals) / len(totals) if totals else None


def _served(cell: Cell) -> tuple[int, int] | None:
    short = [found for run in cell.runs if (found := shortfall(run)) is not None]
    return min(short) if short else None


def _single_run(table: Table) -> list[Finding]:
    single = [cell for cell in table.cells if len(cell.runs) == 1]
    if not single:
        return []
    stated = f"{percent(ONE_RUN_ALLOWANCE)} count as ties here, p99 within {percent(ONE_RUN_TAIL_ALLOWANCE)}"
    if len(single) == len(table.cells):
        beside = "; more where others used the processor" if taken(table.cells) else ""
        claim = (
            "One run a cell: differences of a few per cent cannot be told from noise. Means and medians within "
            f"{stated}{beside}."
        )
    else:
        claim = (
            f"One run only in {names([cell.name for cell in single])}: a few per cent cannot be told from "
            f"noise. Means and medians within at least {stated}; more where repeats lie further apart."
        )
    return [
        Finding(
            "caveat.single-run",
            "caveat",
            claim,
            {"runs_per_cell": 1, "allowance": ONE_RUN_ALLOWANCE, "tail_allowance": ONE_RUN_TAIL_ALLOWANCE},
            tuple(cell.name for cell in single),
        )
    ]


def _confounders(table: Table) -> list[Finding]:
    """Settings that took several values although they are not what the study varies."""
    if table.factor is None:
        return []
    meant = {table.factor.key, "enable_chunked_prefill"}
    # a setting that differs only in a degraded cell still explains why that cell was left out
    degraded = [cell for cell, _ in table.left_out if cell.status is CellStatus.DEGRADED]
    cells = [*table.cells, *degraded]
    moved = {
        key: sorted({repr(cell.settings.get(key)) for cell in cells if key in cell.settings}, key=_numeric)
        for key in varying(cells)
        if key not in meant and (any(key in cell.substituted for cell in cells) or _is_ordered(key))
    }
    moved = {key: values for key, values in moved.items() if len(values) > 1}
    if not moved:
        return []
    parts = [f"{key} ({', '.join(values)})" for key, values in moved.items()]
    claim = (
        f"{listed(parts)} varied together with the {table.factor.noun}: what is said about the {table.factor.noun} may "
        "be their doing."
    )
    touched = tuple(cell.name for cell in cells if set(cell.substituted) & set(moved)) or tuple(c.name for c in cells)
    return [
        Finding("caveat.confounded", "caveat", claim, {key: list(values) for key, values in moved.items()}, touched)
    ]


def _is_ordered(key: str) -> bool:
    return key in {factor.key for factor in FACTORS} | {"max_model_len"}


def _numeric(text: str) -> tuple[float, str]:
    try:
        return float(text), text
    except ValueError:
        return float("inf"), text


def _profiler(table: Table) -> list[Finding]:
    runs = [(cell, run) for cell in table.study.cells for run in cell.runs]
    profiled = [(cell, run) for cell, run in runs if run.settings.get("profile") is True]
    if not profiled:
        return []
    where = (
        "in every run"
        if len(profiled) == len(runs)
        else f"in {names(list(dict.fromkeys(c.name for c, _ in profiled)))}"
    )
    claim = f"A torch profiler was on {where}: absolute times are pessimistic, by how much is unknown."
    clocks = [
        (run.metrics["duration"], run.settings["progress_elapsed_s"])
        for _, run in profiled
        if "duration" in run.metrics and isinstance(run.settings.get("progress_elapsed_s"), int | float)
    ]
    numbers: dict[str, Json] = {"profiled_runs": len(profiled), "runs": len(runs)}
    if clocks:
        gap = max(abs(duration - elapsed) for duration, elapsed in clocks)
        numbers["largest_gap_s"] = round(gap, 2)
        if gap < _BAR_RESOLUTION_S:
            claim += (
                " Writing the trace is not in the durations: the progress bar's elapsed time equals the printed "
                f"duration in {'all ' if len(clocks) == len(profiled) else ''}{plural(len(clocks), 'run')}."
            )
        else:
            claim += (
                f" Writing the trace is probably in the durations: they exceed the progress bar's time by up to "
                f"{number(gap)} s."
            )
    return [Finding("caveat.profiler", "caveat", claim, numbers, tuple(dict.fromkeys(c.name for c, _ in profiled)))]
