"""Whatever clients and hardware do, in whatever order: the invariants hold and every request gets its tokens.

`scripts/check-slow` runs it with 2,000 examples (as `HEADRACE_HYPOTHESIS=nightly pytest tests/properties` does).  A
failing run prints the calls that lead to it; they replay as they stand.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from world import POLICIES, World, make_config, make_params, make_prompt, run_world

SEEDED_WORLDS_PER_POLICY = 40


class SchedulerMachine(RuleBasedStateMachine):
    """Arrive, step, abort, fail; pools so small that allocation fails all the time."""

    @initialize(data=st.data())
    def start(self, data: st.DataObject) -> None:
        self.world = World(make_config(lambda options: data.draw(st.sampled_from(options))))

    @rule(data=st.data(), count=st.integers(1, 4), salt=st.sampled_from(["", "", "tenant"]))
    def arrive(self, data: st.DataObject, count: int, salt: str) -> None:
        def draw(options: Any) -> Any:
            return data.draw(st.sampled_from(options))

        for _ in range(count):
            prompt = make_prompt(draw, self.world.config.max_model_len)
            self.world.arrive(prompt, priority=draw((0, 1, 2)), salt=salt, **make_params(draw))

    @rule(count=st.integers(1, 8))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.world.step()

    @rule(row=st.integers(0, 7))
    def step_with_a_failed_row(self, row: int) -> None:
        self.world.step(fail=(row,))

    @rule(row=st.integers(0, 7))
    def step_with_an_abort_in_flight(self, row: int) -> None:
        self.world.step(abort=(row,))

    @rule(row=st.integers(0, 7))
    def step_where_the_aborted_row_fails(self, row: int) -> None:
        self.world.step(fail=(row,), abort=(row,))

    @precondition(lambda self: self.world.live())
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.world.abort(data.draw(st.sampled_from(self.world.live())))

    @rule()
    def reset_cache(self) -> None:
        self.world.reset_cache()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.drain()


TestSchedulerMachine = SchedulerMachine.TestCase


@pytest.mark.slow
class TestSchedulerMachineAtLength(SchedulerMachine.TestCase):  # type: ignore[misc]
    settings = settings.get_profile("nightly")


@pytest.mark.parametrize("policy", POLICIES)
def test_seeded_worlds_end_with_everybody_served(policy: str) -> None:
    preemptions = hits = 0
    for seed in range(SEEDED_WORLDS_PER_POLICY):
        counters = run_world(seed, policy=policy).scheduler.counters
        preemptions += counters.preemptions
        hits += counters.prefix_hits + counters.preempted_hits
    # The worlds are small enough to hurt: a change that makes them harmless must not go unseen.
    assert preemptions > 50
    assert hits > 500


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_many_seeded_worlds(policy: str) -> None:
    for seed in range(10_000, 12_000):
        run_world(seed, policy=policy)
