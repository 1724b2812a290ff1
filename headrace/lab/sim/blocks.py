"""Calibration from printed result blocks alone, as of a campaign whose logs are all that is left.

A block names totals, not lengths: lengths are synthetic, matched to the totals, and their seeds are part of every
interval.  It names no KV blocks either: a server that started with `max_model_len` can hold one such sequence (rule
R9), which is a lower bound; the pool is taken as the largest that any calibration run proves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from headrace.core.state import SchedulerConfig
from headrace.errors import ConfigError
from headrace.lab.records.results import Cell, RunResult, Study
from headrace.lab.sim.calibration import ILL_CONDITIONED, Calibration
from headrace.lab.sim.cost import StepCost
from headrace.lab.sim.fit import Fit, Observation, fit_runs
from headrace.lab.sim.predict import Prediction, predict_cell
from headrace.lab.sim.server import FrontEnd
from headrace.lab.sim.simulate import simulate
from headrace.lab.sim.traffic import NS, Traffic
from headrace.lab.workload.conversation import LengthShape, matched_lengths

# Draws of lengths whose predictions are averaged: one draw moves a p99 of TPOT by a fifth.
SEEDS = tuple(range(1, 7))
BLOCK_SIZE = 16

_SYNTHETIC = "lengths are synthetic, matched to the printed totals; the order of the requests is not known"
_NEEDED = ("policy", "max_num_batched_tokens", "max_num_seqs", "max_model_len")


@dataclass(frozen=True, slots=True)
class BlockWorkload:
    """What the calibration's blocks say about the workload: the same for every cell that is predicted."""

    requests: int
    prompt_tokens: int
    output_tokens: int
    rate: float
    shape: LengthShape
    num_blocks: int

    def traffic(self, seeds: Sequence[int] = SEEDS) -> tuple[Traffic, ...]:
        """One draw of lengths (and of Poisson arrivals, at a finite rate) a seed."""
        return tuple(self._draw(seed) for seed in seeds)

    def _draw(self, seed: int) -> Traffic:
        lengths = np.array(
            matched_lengths(self.requests, self.prompt_tokens, self.output_tokens, seed, self.shape), np.int64
        )
        planned = np.zeros(self.requests, np.int64)
        if not math.isinf(self.rate):
            gaps = np.random.default_rng([seed, 0xA221]).exponential(1 / self.rate, self.requests)
            planned = np.rint(np.cumsum(gaps) * NS).astype(np.int64)
        return Traffic(planned, lengths[:, 0], lengths[:, 1])


def calibrate_on_blocks(cells: Sequence[Cell], shape: LengthShape | None = None) -> tuple[Calibration, BlockWorkload]:
    """Fit to the cells' printed metrics: the cost of a step, and without `shape` the widths of the lengths too.

    Raises ConfigError for cells of other workloads or without their settings.
    """
    runs = [(cell, run) for cell in cells for run in cell.runs]
    if not runs:
        raise ConfigError("the cells to calibrate on have no run")
    workload = _workload(runs, shape or _NEUTRAL)
    if shape is None:
        workload = replace(workload, shape=_shape(runs, _NEUTRAL))
    start = None
    if shape is None:
        workload, start = _fit_shape(runs, workload)
    observations = _observations(runs, workload, SEEDS)
    fit = fit_runs(observations, start=start)
    return Calibration(
        fit,
        "result blocks",
        tuple(cell.name for cell in cells),
        seen_by(observations, fit),
        (*notes_on(fit), _SYNTHETIC),
    ), workload


# Where the search for the lengths' shape begins, and what it tries, one width after the other: short answers make the
# tail of TPOT, the spread of answers its median against its mean, the spread of prompts the order of TTFT.
_NEUTRAL = LengthShape(prompt_sigma=1.2, output_sigma=0.75, correlation=0.0, short_share=0.0)
_TRIED: tuple[tuple[str, tuple[float, ...]], ...] = (
    ("short_share", (0.0, 0.05, 0.10, 0.15)),
    ("output_sigma", (0.45, 0.60, 0.75, 0.90)),
    ("prompt_sigma", (1.2, 1.6, 2.0)),
    ("short_share", (0.05, 0.10, 0.15)),
)


def _fit_shape(
    runs: Sequence[tuple[Cell, RunResult]], workload: BlockWorkload
) -> tuple[BlockWorkload, tuple[StepCost, FrontEnd]]:
    """The workload whose lengths explain the runs' own metrics best, and the coefficients that go with it."""
    start: tuple[StepCost, FrontEnd] | None = None
    found: dict[LengthShape, Fit] = {}
    best = workload.shape
    for name, values in _TRIED:
        for value in values:
            shape = _shape(runs, replace(best, **{name: value}))
            if shape not in found:
                tried = _observations(runs, replace(workload, shape=shape), SEEDS[:2])
                found[shape] = fit_runs(tried, start=start, rounds=4)
                start = (found[shape].cost, found[shape].front)
        best = min(found, key=lambda shape: found[shape].loss)
    return replace(workload, shape=best), (found[best].cost, found[best].front)


def _shape(runs: Sequence[tuple[Cell, RunResult]], widths: LengthShape) -> LengthShape:
    """The widths, around the lognormals' means that the totals give."""
    count = runs[0][1].metrics["completed"]
    prompt, output = (runs[0][1].metrics[f"total_{side}_tokens"] / count for side in ("input", "output"))
    return replace(
        widths,
        prompt_mu=math.log(prompt) - widths.prompt_sigma**2 / 2,
        output_mu=math.log(output) - widths.output_sigma**2 / 2,
    )


def _observations(
    runs: Sequence[tuple[Cell, RunResult]], workload: BlockWorkload, seeds: Sequence[int]
) -> list[Observation]:
    traffic = workload.traffic(seeds)
    return [
        Observation(cell.name, scheduler_config(cell.settings, workload.num_blocks), traffic, run.metrics)
        for cell, run in runs
    ]


def predict_blocks(
    study: Study, calibration: Calibration, workload: BlockWorkload, *, draws: int = 64
) -> dict[str, Prediction]:
    """Every cell of the study whose settings are known, by its name."""
    traffic = workload.traffic()
    return {
        cell.name: predict_cell(
            cell.name,
            scheduler_config(cell.settings, workload.num_blocks),
            traffic,
            calibration.fit,
            draws=draws,
            seen=calibration.seen,
        )
        for cell in study.cells
        if all(key in cell.settings for key in _NEEDED)
    }


def scheduler_config(settings: Mapping[str, Any], num_blocks: int) -> SchedulerConfig:
    """A cell's settings as the scheduler takes them.  Raises ConfigError naming what is missing."""
    for key in _NEEDED:
        if key not in settings:
            raise ConfigError(f"the setting {key} is not known, so the run cannot be simulated")
    return SchedulerConfig(
        policy=settings["policy"],
        max_num_batched_tokens=settings["max_num_batched_tokens"],
        max_num_seqs=settings["max_num_seqs"],
        max_model_len=settings["max_model_len"],
        block_size=settings.get("block_size", BLOCK_SIZE),
        num_blocks=num_blocks,
        enable_prefix_caching=settings.get("enable_prefix_caching", False),
        long_prefill_token_threshold=settings.get("long_prefill_token_threshold", 0),
        scheduling_policy=settings.get("scheduling_policy", "fcfs"),
    )


def _workload(runs: Sequence[tuple[Cell, RunResult]], shape: LengthShape) -> BlockWorkload:
    first = runs[0][1]
    asked = {run.settings.get("num_prompts", run.metrics.get("completed")) for _, run in runs}
    rates = {run.settings.get("request_rate", "inf") for _, run in runs}
    if len(asked) != 1 or len(rates) != 1:
        raise ConfigError(
            "the cells to calibrate on were asked for different numbers of requests, or at different rates"
        )
    count = int(first.metrics["completed"])
    if any(run.metrics.get("completed") != asked.copy().pop() for _, run in runs):
        raise ConfigError("a cell to calibrate on served less than it was asked for: its totals are not the workload's")
    rate = rates.pop()
    blocks = max(-(-cell.settings["max_model_len"] // BLOCK_SIZE) for cell, _ in runs)
    return BlockWorkload(
        count,
        round(sum(run.metrics["total_input_tokens"] for _, run in runs) / len(runs)),
        round(sum(run.metrics["total_output_tokens"] for _, run in runs) / len(runs)),
        math.inf if rate == "inf" else float(rate),
        shape,
        blocks,
    )


def seen_by(observations: Sequence[Observation], fit: Fit) -> dict[str, tuple[float, float]]:
    """The range of the steps' features in the runs that a fit has seen."""
    steps = [simulate(run.traffic[0], fit.server(run.config)) for run in observations]
    return {
        name: (
            float(min(outcome.step(name).min() for outcome in steps)),
            float(max(outcome.step(name).max() for outcome in steps)),
        )
        for name in ("tokens", "kv_tokens")
    }


def notes_on(fit: Fit) -> tuple[str, ...]:
    """What a reader of the coefficients must know."""
    notes = []
    if fit.condition > ILL_CONDITIONED:
        notes.append(
            f"the runs do not tell the coefficients apart (condition {fit.condition:.0f}): add one with a small budget,"
            " or one that reaches max_num_seqs"
        )
    return tuple(notes)
