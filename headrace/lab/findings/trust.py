"""May these figures be believed, and which of them may be compared?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from headrace.lab.findings.disturbance import foreign_share, is_disturbed, tells_of_others
from headrace.lab.findings.finding import Finding
from headrace.lab.findings.stats import ONE_RUN_ALLOWANCE, ONE_RUN_TAIL_ALLOWANCE
from headrace.lab.findings.table import FACTORS, Table, mean, varying, why_invalid
from headrace.lab.findings.words import listed, names, number, percent, plural
from headrace.lab.records.comparable import shortfall
from headrace.lab.records.results import Cell, CellStatus, Json, RunResult

# A progress bar shows whole seconds, cut off; one more covers the time around the bar.
_BAR_RESOLUTION_S = 2.0
# Warnings of so many kinds are quoted; the rest is in `numbers`.
_MAX_WARNINGS = 3
_NUMBER = re.compile(r"\d+(?:\.\d+)?(?: ?%)?")


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
        by_reason.setdefault(why_invalid(run), []).append(_run_name(name, run))
    verb = "is" if len(dropped) == 1 else "are"
    text = "; ".join(f"{names(runs)} ({why})" for why, runs in by_reason.items())
    claim = f"{plural(len(dropped), 'run')} {verb} INVALID and not counted: {text}."
    cells = tuple(dict.fromkeys(name for name, _ in dropped))
    numbers: dict[str, Json] = {"sources": [run.source for _, run in dropped]}
    return [Finding("comparability.invalid-runs", "comparability", claim, numbers, cells)]


def _run_name(cell: str, run: RunResult) -> str:
    repeat = run.settings.get("repeat")
    return f"{cell} run {repeat}" if isinstance(repeat, int) else f"{cell} ({run.source})"


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
        *_single_run(table), *_confounders(table), *_disturbed_runs(table), *_warnings(table), *_profiler(table)
    ]  # fmt: skip


def others_took(table: Table, cells: Sequence[str] | None = None) -> str | None:
    """A sentence on the study's disturbed runs; None where none of them counts (in these cells, where they are named).

    One sentence for the whole study, so that findings which share the caveat share its words.
    """
    kept, aside = _disturbed(table)
    if not any(cells is None or name in cells for name, _ in kept):
        return None
    every = [*kept, *aside]
    total = sum(len(cell.runs) for cell in table.cells) + len(aside)
    return (
        f"{len(every)} of {plural(total, 'run')} {'was' if len(every) == 1 else 'were'} disturbed: other processes "
        f"used {_shares([run for _, run in every])} of the processor."
    )


def with_disturbance(table: Table, findings: Sequence[Finding]) -> list[Finding]:
    """The findings, with a caveat on each that rests on disturbed runs."""
    return [
        one
        if (said := others_took(table, one.cells)) is None or said in one.claim
        else replace(one, caveats=(*one.caveats, said))
        for one in findings
    ]


def warned(cells: Sequence[Cell]) -> list[Cell]:
    """Cells with a run that carries a warning of its own (a profiler and other processes are told apart)."""
    return [cell for cell in cells if any(_own_warnings(run) for run in cell.runs)]


def _disturbed(table: Table) -> tuple[list[tuple[str, RunResult]], list[tuple[str, RunResult]]]:
    """Disturbed runs of the compared cells, by cell: those that count, and those that are set aside."""
    kept = [(cell.name, run) for cell in table.cells for run in cell.runs if is_disturbed(run)]
    compared = {cell.name for cell in table.cells}
    return kept, [(name, run) for name, run in table.set_aside if name in compared]


def _shares(runs: Sequence[RunResult]) -> str:
    low, high = (percent(pick(map(foreign_share, runs))) for pick in (min, max))
    return low if low == high else f"{low} to {high}"


def _disturbed_runs(table: Table) -> list[Finding]:
    """All the runs during which others used the processor, and what became of them."""
    kept, aside = _disturbed(table)
    if not aside and not kept:
        return []
    total = sum(len(cell.runs) for cell in table.cells) + len(aside)
    every = [*kept, *aside]
    shares = _shares([run for _, run in every])
    claim = f"{len(every)} of {plural(total, 'run')}: other processes used {shares} of the processor."
    if aside:
        which = names([_run_name(name, run) for name, run in aside])
        verb, their = ("is", "its cell has") if len(aside) == 1 else ("are", "their cells have")
        claim += f" {which} {verb} left out, since {their} undisturbed repeats."
    if kept:
        those = "the others" if aside else "these"
        claim += (
            f" The cells of {those} have no undisturbed run: differences in them count only beyond what others "
            "can slow a run down by. Repeat them on a quiet machine."
        )
    numbers: dict[str, Json] = {run.source: round(foreign_share(run), 3) for _, run in every}
    cells = tuple(dict.fromkeys(name for name, _ in every))
    return [Finding("caveat.disturbed", "caveat", claim, numbers, cells)]


def _own_warnings(run: RunResult) -> list[str]:
    return [text for text in run.warnings if "profiler" not in text and not tells_of_others(text)]


def _warnings(table: Table) -> list[Finding]:
    """What the measuring client or the importer said about single runs; those that differ in numbers only are one."""
    cells = warned(table.cells)
    if not cells:
        return []
    runs = [run for cell in table.cells for run in cell.runs]
    kinds: dict[str, list[str]] = {}
    for run in runs:
        for kind, text in {_NUMBER.sub("#", text): text for text in _own_warnings(run)}.items():
            kinds.setdefault(kind, []).append(text.rstrip("."))
    said = [f"{len(texts)} of {plural(len(runs), 'run')}: {_merged(texts)}" for texts in kinds.values()]
    more = f"; and {plural(len(said) - _MAX_WARNINGS, 'other warning')}" if len(said) > _MAX_WARNINGS else ""
    claim = f"{'; '.join(said[:_MAX_WARNINGS])}{more}."
    return [Finding("caveat.run-warnings", "caveat", claim, {"warnings": said}, tuple(c.name for c in cells))]


def _merged(texts: Sequence[str]) -> str:
    """One text for several of the same words: "15 % to 69 %" where their numbers differ."""
    columns = iter(list(zip(*(_NUMBER.findall(text) for text in texts), strict=True)))

    def span(_: re.Match[str]) -> str:
        values = sorted(set(next(columns)), key=lambda text: float(text.rstrip(" %")))
        return values[0] if len(values) == 1 else f"{values[0]} to {values[-1]}"

    return _NUMBER.sub(span, texts[0])


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
    which = (
        "One run a cell"
        if len(single) == len(table.cells)
        else f"One run only in {names([cell.name for cell in single])}"
    )
    claim = (
        f"{which}: differences of a few per cent cannot be told from noise. Means and medians within "
        f"{percent(ONE_RUN_ALLOWANCE)} count as ties here, p99 within {percent(ONE_RUN_TAIL_ALLOWANCE)}."
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
