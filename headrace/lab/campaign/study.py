"""From a campaign's finished runs to the study that findings and reports read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from headrace.lab.campaign.cells import PlannedCell
from headrace.lab.campaign.flags import SERVE_FLAGS
from headrace.lab.campaign.result import FinishedRun
from headrace.lab.campaign.resume import Failure
from headrace.lab.records.results import Cell, CellStatus, RunResult, Study

Json = Any

# A flag's setting -> the label under which a server states what it uses, for every flag but these two: a tokenizer is
# stated as the directory that it was found in, and of the memory's share only the blocks are stated that came of it.
_UNSTATED = {"tokenizer", "gpu_memory_utilization"}
STATED = {key: key for flag in SERVE_FLAGS if (key := flag.replace("-", "_")) not in _UNSTATED} | {
    "num_gpu_blocks_override": "num_gpu_blocks"
}

# Facts of the machine: runs that differ in these differ for more than their settings.
_MACHINE = ("cpu_model", "cpus_usable", "system")


def build_study(
    name: str,
    title: str,
    cells: Sequence[PlannedCell],
    runs: Mapping[str, Sequence[FinishedRun]],
    *,
    repeats: int,
    facts: Mapping[str, Json],
) -> Study:
    """Every planned cell with what became of it; `runs` holds the finished ones by cell, in the order of repeats.

    `facts` are today's, for a study without runs; a study with runs states theirs.
    """
    sealed = [run.seal.facts for cell in cells for run in runs.get(cell.name, ())]
    usual = _usual_machine(sealed)
    judged = tuple(judge_cell(cell, runs.get(cell.name, ()), repeats=repeats, machine=usual) for cell in cells)
    return Study(name, title, "measured", judged, study_facts(sealed or [facts]))


def study_facts(sealed: Sequence[Mapping[str, Json]]) -> dict[str, Json]:
    """What all the runs have in common; a fact in which they differ says so, with its values and their runs."""
    found: dict[str, Json] = {}
    for key in dict.fromkeys(key for facts in sealed for key in facts):
        values = Counter(json.dumps(facts.get(key), sort_keys=True) for facts in sealed)
        if len(values) == 1:
            found[key] = sealed[0][key]
        else:
            told = (f"{_words(json.loads(value))} ({count} of {len(sealed)})" for value, count in values.most_common())
            found[key] = f"differs between runs: {'; '.join(told)}"
    return found


def _words(value: Json) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key}={item}" for key, item in value.items()) or "none"
    return "unknown" if value is None else str(value)


def _usual_machine(sealed: Sequence[Mapping[str, Json]]) -> Mapping[str, Json]:
    """The machine of most runs (the first of equals)."""
    machines = Counter(json.dumps({key: facts.get(key) for key in _MACHINE}) for facts in sealed)
    usual: dict[str, Json] = json.loads(machines.most_common(1)[0][0]) if machines else {}
    return usual


def judge_cell(
    cell: PlannedCell, runs: Sequence[FinishedRun], *, repeats: int, machine: Mapping[str, Json] | None = None
) -> Cell:
    """One cell's status, and the sentence that gives the reason.  Runs that left `machine` get a warning."""
    if not cell.legal:
        return Cell(cell.name, cell.settings, CellStatus.ILLEGAL, rule=cell.rule, reason=cell.reason)
    results = tuple(_run(cell, run, result, machine or {}) for run in runs for result in run.results)
    failures = [run.seal.failure for run in runs if run.seal.failure is not None]
    refused = next((failure for failure in failures if failure.kind == "refused"), None)
    if refused is not None and not results:
        return Cell(
            cell.name, cell.settings, CellStatus.ILLEGAL, rule=refused.rule, reason=refused.message, refused=True
        )
    if not results:
        if failures:
            return Cell(cell.name, cell.settings, CellStatus.FAILED, reason=_failed(failures, repeats))
        return Cell(cell.name, cell.settings, CellStatus.PENDING, reason="not measured yet")
    substituted = substitutions(cell, runs)
    used = {key: used for key, (_, used) in substituted.items()}
    settings = {**cell.settings, **_settled(cell, runs), **used}
    status, reason = CellStatus.OK, None
    if substituted:
        status, reason = CellStatus.SUBSTITUTED, _substituted(substituted)
    if losses := [*filter(None, map(_loss, results)), *([_failed(failures, repeats)] if failures else [])]:
        status, reason = CellStatus.DEGRADED, " ".join([*losses, *([reason] if reason else [])])
    return Cell(cell.name, settings, status, results, reason=reason, substituted=substituted)


def substitutions(cell: PlannedCell, runs: Sequence[FinishedRun]) -> dict[str, tuple[Json, Json]]:
    """Settings that a server states differently from what it was asked for: setting -> (wanted, used)."""
    found: dict[str, tuple[Json, Json]] = {}
    for run in runs:
        for key, label in STATED.items():
            wanted = cell.settings.get(key)
            if wanted not in (None, "auto") and label in run.stated and run.stated[label] != wanted:
                found[key] = (wanted, run.stated[label])
    return found


def _settled(cell: PlannedCell, runs: Sequence[FinishedRun]) -> dict[str, Json]:
    """What "auto" became, where all of the cell's servers agree on it."""
    found = {}
    for key in (key for key, value in cell.settings.items() if value == "auto" and key in STATED):
        values = [run.stated[STATED[key]] for run in runs if STATED[key] in run.stated]
        if values and all(value == values[0] for value in values):
            found[key] = values[0]
    return found


def _run(cell: PlannedCell, run: FinishedRun, result: RunResult, machine: Mapping[str, Json]) -> RunResult:
    version = run.seal.server.get("version")
    stated = {key: run.stated[STATED[key]] for key in cell.settings if STATED.get(key) in run.stated}
    settings = {
        **result.settings,
        **cell.settings,
        **stated,
        "repeat": run.seal.repeat,
        **({"version": version} if version else {}),
    }
    moved = [f"{key} {run.seal.facts.get(key)}" for key in machine if run.seal.facts.get(key) != machine[key]]
    elsewhere = [f"measured on another machine than most runs: {', '.join(moved)}"] if moved else []
    return replace(result, settings=settings, warnings=(*result.warnings, *elsewhere, *cell.warnings))


def _loss(run: RunResult) -> str | None:
    completed, asked = run.metrics.get("completed"), run.settings.get("num_prompts")
    if completed is None or not isinstance(asked, int) or completed >= asked:
        return None
    return f"Run {run.settings['repeat']} served {completed:.0f} of {asked} requests."


def _failed(failures: Sequence[Failure], repeats: int) -> str:
    of = f"{len(failures)} of {repeats} runs failed" if repeats > 1 else "The run failed"
    return f"{of} ({failures[0].kind}): {failures[0].message}."


def _substituted(changed: Mapping[str, tuple[Json, Json]]) -> str:
    flags = (f"--{key.replace('_', '-')} {used} instead of {wanted}" for key, (wanted, used) in changed.items())
    return f"The server runs with {', '.join(flags)}."
