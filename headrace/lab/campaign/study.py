"""From a campaign's directory to the study that findings and reports read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from headrace.lab.campaign.cells import PlannedCell
from headrace.lab.campaign.resume import Failure, Seal
from headrace.lab.records.results import Cell, CellStatus, RunResult, Study

Json = Any

# Settings that a server states under the name of a flag, and that a plan can ask for.
_STATED = (
    "block_size",
    "enable_chunked_prefill",
    "enable_prefix_caching",
    "gpu_memory_utilization",
    "max_model_len",
    "max_num_batched_tokens",
    "max_num_seqs",
    "num_gpu_blocks_override",
    "scheduler_version",
)


def build_study(
    name: str,
    title: str,
    cells: Sequence[PlannedCell],
    seals: Mapping[str, Sequence[Seal]],
    *,
    repeats: int,
    facts: Mapping[str, Json],
) -> Study:
    """Every planned cell with what became of it; `seals` holds the finished runs by cell, in the order of repeats."""
    judged = tuple(judge_cell(cell, seals.get(cell.name, ()), repeats=repeats) for cell in cells)
    return Study(name, title, "measured", judged, facts)


def judge_cell(cell: PlannedCell, seals: Sequence[Seal], *, repeats: int) -> Cell:
    """One cell's status, and the sentence that gives the reason."""
    if not cell.legal:
        return Cell(cell.name, cell.settings, CellStatus.ILLEGAL, rule=cell.rule, reason=cell.reason)
    runs = tuple(_run(cell, seal, seal.result) for seal in seals if seal.result is not None)
    failures = [seal.failure for seal in seals if seal.failure is not None]
    refused = next((failure for failure in failures if failure.rule is not None), None)
    if refused is not None and not runs:
        return Cell(cell.name, cell.settings, CellStatus.ILLEGAL, rule=refused.rule, reason=refused.message)
    if not runs:
        if failures:
            return Cell(cell.name, cell.settings, CellStatus.FAILED, reason=_failed(failures, repeats))
        return Cell(cell.name, cell.settings, CellStatus.PENDING, reason="not measured yet")
    substituted = substitutions(cell, seals)
    settings = {**cell.settings, **{key: used for key, (_, used) in substituted.items()}}
    status, reason = CellStatus.OK, None
    if substituted:
        status, reason = CellStatus.SUBSTITUTED, _substituted(substituted)
    if losses := [*filter(None, map(_loss, runs)), *([_failed(failures, repeats)] if failures else [])]:
        status, reason = CellStatus.DEGRADED, " ".join([*losses, *([reason] if reason else [])])
    return Cell(cell.name, settings, status, runs, reason=reason, substituted=substituted)


def substitutions(cell: PlannedCell, seals: Sequence[Seal]) -> dict[str, tuple[Json, Json]]:
    """Settings that a server states differently from what it was asked for: setting -> (wanted, used)."""
    found: dict[str, tuple[Json, Json]] = {}
    for seal in seals:
        stated = seal.server.get("effective", {})
        for key in _STATED:
            wanted = cell.settings.get(key)
            if wanted not in (None, "auto") and key in stated and stated[key] != wanted:
                found[key] = (wanted, stated[key])
    return found


def _run(cell: PlannedCell, seal: Seal, result: RunResult) -> RunResult:
    version = seal.server.get("version")
    settings = {**result.settings, **cell.settings, "repeat": seal.repeat, **({"version": version} if version else {})}
    return replace(result, settings=settings, warnings=(*result.warnings, *cell.warnings))


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
