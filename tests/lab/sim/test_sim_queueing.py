"""Queues whose answer is known: the simulator must agree with theory before anyone believes it where there is none."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.core.state import SchedulerConfig
from headrace.lab.sim import Server, StepCost, Traffic, simulate
from headrace.lab.sim.fast import applies

STEP_S = 0.01
ONE_AT_A_TIME = Server(
    SchedulerConfig(max_num_seqs=1, max_num_batched_tokens=64, max_model_len=4096, num_blocks=512),
    StepCost(base_s=STEP_S),
)

pytestmark = pytest.mark.skipif(not applies(ONE_AT_A_TIME), reason="the fast path is not built")


def poisson(rate: float, outputs: np.ndarray, rng: np.random.Generator) -> Traffic:
    times = np.rint(np.cumsum(rng.exponential(1 / rate, len(outputs))) * 1e9).astype(np.int64)
    return Traffic(times, np.ones(len(outputs), np.int64), outputs)


@pytest.mark.parametrize("load", [0.3, 0.5, 0.8])
def test_md1_waits_as_pollaczek_and_khinchine_say(load: float) -> None:
    rng = np.random.default_rng(1)
    outcome = simulate(poisson(load / STEP_S, np.ones(400_000, np.int64), rng), ONE_AT_A_TIME)
    outcome.check()
    assert outcome.e2e_s.mean() == pytest.approx(STEP_S + load * STEP_S / (2 * (1 - load)), rel=0.03)


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_mm1_waits_as_theory_says(load: float) -> None:
    """Geometric answers of mean m: the discrete M/M/1."""
    mean_tokens = 4.0
    rng = np.random.default_rng(2)
    rate = load / (mean_tokens * STEP_S)
    waits = []
    for _ in range(4):
        outcome = simulate(poisson(rate, rng.geometric(1 / mean_tokens, 250_000), rng), ONE_AT_A_TIME)
        outcome.check()
        waits.append(outcome.e2e_s.mean())
    second_moment = STEP_S**2 * (2 * mean_tokens**2 - mean_tokens)
    theory = mean_tokens * STEP_S + rate * second_moment / (2 * (1 - load))
    assert np.mean(waits) == pytest.approx(theory, rel=0.03)


def test_without_limits_a_token_takes_a_step_and_the_first_one_step_and_a_half() -> None:
    """M/G/infinity with a constant step: an arrival meets half a step on average, then its own."""
    rng = np.random.default_rng(3)
    config = SchedulerConfig(max_num_seqs=4096, max_num_batched_tokens=1 << 20, max_model_len=4096, num_blocks=1 << 20)
    outcome = simulate(poisson(500.0, rng.integers(2, 200, 20_000), rng), Server(config, StepCost(base_s=STEP_S)))
    outcome.check()
    assert outcome.ttft_s.mean() == pytest.approx(1.5 * STEP_S, rel=0.01)
    assert np.nanmean(outcome.tpot_s) == pytest.approx(STEP_S, rel=1e-6)
