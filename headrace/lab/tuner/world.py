"""The tuner's two senses for a plan: scores by simulation, and scores of measured runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from headrace.core.state import SchedulerConfig
from headrace.errors import ConfigError
from headrace.lab.sim.fit import Fit, Observation, fit_runs
from headrace.lab.sim.outcome import Outcome
from headrace.lab.sim.simulate import simulate
from headrace.lab.sim.slo import meets
from headrace.lab.sim.traffic import Traffic
from headrace.lab.tuner.objective import GOODPUT, Objective
from headrace.lab.tuner.surrogate import Expected

# Coefficients that a few runs can tell apart; the prompt's own attention and the sampled rows come with more of them.
_FEW = ("base_s", "token_s", "kv_token_s")
_MANY = ("base_s", "token_s", "kv_token_s", "sequence_s", "delay_s", "each_s")


@dataclass(frozen=True, slots=True)
class Seen:
    """One measured run of a cell.

    metrics   by vLLM's keys, with `request_goodput` where the objective asks for it; empty when the run failed
    traffic   what it was really sent, with the lengths that came back
    """

    metrics: Mapping[str, float]
    traffic: Traffic | None = None


def metrics_of(outcome: Outcome, objective: Objective) -> dict[str, float]:
    """Of a simulated run, with the goodput that the objective asks for."""
    metrics = dict(outcome.metrics())
    if objective.metric == GOODPUT and objective.slo is not None:
        metrics[GOODPUT] = float(meets(outcome, objective.slo).sum()) / max(outcome.duration_s, 1e-9)
    return metrics


class SimulatedCells:
    """Scores of all cells by simulation, with the cost of a step fitted anew to the runs so far."""

    def __init__(self, configs: Sequence[SchedulerConfig], traffic: Traffic | None, objective: Objective) -> None:
        self._configs, self._traffic, self._objective = configs, traffic, objective
        self.fit: Fit | None = None

    def __call__(self, runs: Mapping[int, Sequence[Seen]]) -> Expected:
        """Raises ConfigError when no run told any time."""
        observations = [
            Observation(f"cell {cell}", self._configs[cell], (traffic,), seen.metrics)
            for cell, several in runs.items()
            for seen in several
            if seen.metrics and (traffic := seen.traffic or self._traffic) is not None
        ]
        if not observations:
            return Expected(np.ones(len(self._configs)), np.zeros(len(self._configs)))
        terms = _FEW if len(observations) < 3 else _MANY
        if self.fit is None or self.fit.terms != terms:
            self.fit = fit_runs(observations, terms, rounds=6)
        else:  # one run more moves it a little
            self.fit = fit_runs(observations, terms, start=(self.fit.cost, self.fit.front), rounds=2)
        traffic = self._traffic or observations[0].traffic[0]
        found = [metrics_of(simulate(traffic, self.fit.server(config)), self._objective) for config in self._configs]
        return Expected(
            np.array([self._objective.value(each) for each in found]),
            np.array([self._objective.excess(each) for each in found]),
        )


def scheduler_configs(
    settings: Sequence[Mapping[str, object]], num_blocks: int | None, longest: int
) -> list[SchedulerConfig]:
    """Each cell's scheduler.  Settings that a plan leaves to the server must be given; ConfigError names them."""
    from headrace.lab.sim.blocks import scheduler_config

    if not settings:
        raise ConfigError("the plan has no legal cell")
    found = []
    for each in settings:
        blocks = each.get("num_gpu_blocks_override") or num_blocks
        if not isinstance(blocks, int):
            # An ample pool: what the requests need at once, and nothing is ever preempted.
            size, seats = each.get("block_size", 16), each.get("max_num_seqs", 256)
            assert isinstance(size, int) and isinstance(seats, int)
            blocks = -(-longest // size) * seats
        found.append(scheduler_config(each, blocks))
    return found
