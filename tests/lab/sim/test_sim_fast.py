"""The fast path agrees with the loop over `core.scheduler` in every decision and every nanosecond."""

from __future__ import annotations

import numpy as np
import pytest
from sim_world import random_case

from headrace.core.state import SchedulerConfig
from headrace.lab.sim import Server, StepCost
from headrace.lab.sim.fast import applies, simulate_fast
from headrace.lab.sim.outcome import SEGMENT_COLUMNS, Outcome
from headrace.lab.sim.stepwise import Decision, simulate_stepwise

COLUMNS = (
    *("sent_ns", "queued_ns", "scheduled_ns", "ended_ns", "status", "preemptions"),
    *("ends_ns", "blocks_used", "runs"),
)

pytestmark = pytest.mark.skipif(
    not applies(Server(SchedulerConfig(), StepCost())), reason="headrace was installed without a C++ compiler"
)


def assert_equal(seed: int) -> Outcome:
    traffic, server = random_case(seed)
    slow_log: list[Decision] = []
    slow = simulate_stepwise(traffic, server, decisions=slow_log)
    slow.check()
    for jumps in (True, False):
        fast_log: list[Decision] = []
        fast = simulate_fast(traffic, server, decisions=fast_log, jumps=jumps)
        assert fast_log == slow_log, f"seed {seed}, jumps {jumps}: another decision in step " + str(
            next((i for i, (a, b) in enumerate(zip(fast_log, slow_log, strict=False)) if a != b), "count")
        )
        for column in COLUMNS:
            assert np.array_equal(getattr(fast, column), getattr(slow, column)), f"seed {seed}, jumps {jumps}: {column}"
        for column in SEGMENT_COLUMNS[1:]:
            assert np.array_equal(fast.step(column), slow.step(column)), f"seed {seed}, jumps {jumps}: {column}"
    return slow


def test_fast_equals_stepwise_in_some_hundred_random_cases() -> None:
    preempting = sum(bool(assert_equal(seed).preemptions.any()) for seed in range(250))
    assert preempting > 60


def test_a_step_that_only_evicts_is_forgotten_after_a_jump() -> None:
    """One of 50,000 cases: two such steps with a jump between them were taken for a scheduler that stands still."""
    assert assert_equal(1_037_253).preemptions.any()


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_fast_equals_stepwise_in_50_000_random_cases(part: int) -> None:
    first = 1_000_000 + part * 5_000
    preempting = sum(bool(assert_equal(seed).preemptions.any()) for seed in range(first, first + 5_000))
    assert preempting >= 5_000 / 3
