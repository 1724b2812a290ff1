"""Tuning over a real campaign: its cells are searched, its machinery measures, its directory keeps every run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from headrace.errors import ConfigError
from headrace.lab.campaign.cells import PlannedCell, cells
from headrace.lab.campaign.execute import run_campaign
from headrace.lab.campaign.plan import Plan
from headrace.lab.campaign.progress import Reporter
from headrace.lab.campaign.result import run_files
from headrace.lab.campaign.resume import run_directory
from headrace.lab.records.results import RunResult, Study
from headrace.lab.records.schema import RequestRecord
from headrace.lab.records.store import read_run
from headrace.lab.sim.slo import Slo
from headrace.lab.sim.traffic import Traffic, traffic_from_records, traffic_from_spec
from headrace.lab.tuner.objective import GOODPUT, Objective
from headrace.lab.tuner.search import Found, search
from headrace.lab.tuner.world import Seen, SimulatedCells, scheduler_configs

# A longest sequence where the plan leaves it to the server; only the size of an ample KV cache follows from it.
_LONGEST = 4096


def tune_plan(
    plan: Plan,
    plan_text: str,
    out: Path,
    objective: Objective,
    *,
    reporter: Reporter,
    most: int | None = None,
    tolerance: float = 0.02,
    kv_blocks: int | None = None,
    told: Callable[[str], None] = lambda line: None,
    run: Callable[..., Study] = run_campaign,
) -> dict[str, Any]:
    """Search the plan's legal cells; returns the answer as JSON (see `words.sentences`).

    most   measured runs; a quarter of the legal cells when it is not given
    run    `run_campaign`, or what a test puts in its place
    Raises ConfigError for a plan whose cells cannot be simulated, and what `run_campaign` raises.
    """
    legal = [cell for cell in cells(plan) if cell.legal]
    configs = scheduler_configs([cell.settings for cell in legal], kv_blocks, _longest(legal))
    spec = plan.workload_spec()
    try:
        traffic: Traffic | None = traffic_from_spec(spec)
    except ConfigError:  # real texts: the first measured run tells their lengths
        traffic = None
    world = SimulatedCells(configs, traffic, objective)

    def measure(cell: int) -> Seen:
        name = legal[cell].name
        told(f"measuring {name}")
        study = run(plan, plan_text, out, reporter=reporter, only=frozenset({(name, 1)}))
        return _seen(study, name, out, objective.slo, spec.max_concurrency)

    found = search(
        [_searched(cell, legal) for cell in legal],
        measure,
        lambda seen: (objective.value(seen.metrics), objective.excess(seen.metrics)) if seen.metrics else (0.0, 0.0),
        world,
        most=most or max(1, len(legal) // 4),
        tolerance=tolerance,
        told=told,
    )
    return _answer(plan, legal, found, objective, tolerance)


def _longest(legal: list[PlannedCell]) -> int:
    lengths = [value for cell in legal if isinstance(value := cell.settings.get("max_model_len"), int)]
    return max(lengths, default=_LONGEST)


def _searched(cell: PlannedCell, legal: list[PlannedCell]) -> dict[str, Any]:
    """The settings in which the plan's cells differ."""
    return {
        key: value
        for key, value in cell.settings.items()
        if len({repr(other.settings.get(key)) for other in legal}) > 1 and key != "policy"
    }


def _seen(study: Study, name: str, out: Path, slo: Slo | None, max_concurrency: int | None) -> Seen:
    cell = next(each for each in study.cells if each.name == name)
    if not cell.runs:
        return Seen({})
    run: RunResult = cell.runs[-1]
    manifest, records = read_run(run_files(run_directory(out, name, 1), 1).client)
    try:
        traffic: Traffic | None = traffic_from_records(
            records, start_ns=int(manifest["start_ns"]), max_concurrency=max_concurrency
        )
    except ConfigError:
        traffic = None
    return seen_of(run.metrics, records, traffic, slo)


def seen_of(
    metrics: Mapping[str, float], records: Sequence[RequestRecord], traffic: Traffic | None, slo: Slo | None
) -> Seen:
    """A measured run as the search sees it, with the goodput under `slo` where there is one."""
    found = dict(metrics)
    if slo is not None:
        met = sum(_meets(record, slo) for record in records)
        found[GOODPUT] = met / found["duration"] if found.get("duration") else 0.0
    return Seen(found, traffic)


def _meets(record: RequestRecord, slo: Slo) -> bool:
    """As `sim.slo.meets`, of a measured request: latency counts from when it was due."""
    stamps = [chunk.t_ns for chunk in record.chunks if chunk.kind == "content"]
    if record.error_class is not None or not stamps or record.done_ns is None:
        return False
    tokens = record.output_tokens_server or record.output_tokens_retokenized or len(stamps)
    first, last = stamps[0], stamps[-1]
    return (
        first - record.planned_ns <= slo.ttft_ms * 1e6
        and (last - first) / max(1, tokens - 1) <= slo.tpot_ms * 1e6
        and last - record.planned_ns <= slo.e2el_ms * 1e6
    )


def _answer(
    plan: Plan, legal: list[PlannedCell], found: Found, objective: Objective, tolerance: float
) -> dict[str, Any]:
    best = None if found.best is None else legal[found.best]
    varied = set().union(*(_searched(cell, legal) for cell in legal)) if legal else set()
    flags: Mapping[str, Any] = {} if best is None else best.flags
    return {
        "plan": plan.name,
        "objective": str(objective),
        "metric": objective.metric,
        "cells": len(legal),
        "best": None if best is None else best.name,
        "flags": {key: value for key, value in flags.items() if key.replace("-", "_") in varied},
        "score": found.score,
        "sure": found.sure,
        "expected_loss": found.regret,
        "tolerance": tolerance,
        "done": found.done,
        "ties": [legal[cell].name for cell in found.ties],
        "runs": [{"cell": legal[step.cell].name, "score": step.score, "why": step.why} for step in found.steps],
        "expected": [
            {
                "cell": cell.name,
                "simulated": float(found.simulated[index]),
                "mean": _exp(found.belief.mean[index]),
                "deviation": float(found.belief.deviation[index]),
                "keeps_bounds": float(found.belief.keeps[index]),
            }
            for index, cell in enumerate(legal)
        ],
    }


def _exp(value: float) -> float:
    return math.exp(value) if math.isfinite(value) else 0.0
