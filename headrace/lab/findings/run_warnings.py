"""What is said about single runs: disturbed by other processes, or warned of by the client that measured them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from headrace.lab.findings.disturbance import foreign_share, is_disturbed, tells_of_others
from headrace.lab.findings.finding import Finding
from headrace.lab.findings.table import Table
from headrace.lab.findings.words import names, percent, plural
from headrace.lab.records.results import Cell, Json, RunResult

# Warnings of so many kinds are quoted; the rest is in `numbers`.
_MAX_WARNINGS = 3
_NUMBER = re.compile(r"\d+(?:\.\d+)?(?: ?%)?")


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


def disturbed_runs(table: Table) -> list[Finding]:
    """All the runs during which others used the processor, and what became of them."""
    kept, aside = _disturbed(table)
    if not aside and not kept:
        return []
    total = sum(len(cell.runs) for cell in table.cells) + len(aside)
    every = [*kept, *aside]
    shares = _shares([run for _, run in every])
    claim = f"{len(every)} of {plural(total, 'run')}: other processes used {shares} of the processor."
    if aside:
        which = names([run_name(name, run) for name, run in aside])
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


def run_warnings(table: Table) -> list[Finding]:
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


def run_name(cell: str, run: RunResult) -> str:
    repeat = run.settings.get("repeat")
    return f"{cell} run {repeat}" if isinstance(repeat, int) else f"{cell} ({run.source})"
