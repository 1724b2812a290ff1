"""A simulation leaves what a measured run leaves, and loses nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sim_world import POLICIES, random_case

from headrace.core.state import SchedulerConfig
from headrace.errors import ConfigError
from headrace.lab.metrics.result import run_result_from_records
from headrace.lab.sim import FrontEnd, Server, StepCost, Traffic, simulate, traffic_from_records, traffic_from_spec
from headrace.lab.sim.stepwise import Decision, simulate_stepwise
from headrace.lab.workload.spec import WorkloadSpec

COST = StepCost(base_s=0.0125, token_s=0.00073, kv_token_s=8.4e-7)


def requests(*rows: tuple[float, int, int], max_concurrency: int = 0) -> Traffic:
    """(planned seconds, prompt, output) a request."""
    table = np.array([(round(t * 1e9), p, o) for t, p, o in rows], np.int64)
    return Traffic(table[:, 0], table[:, 1], table[:, 2], max_concurrency=max_concurrency)


def test_one_request_takes_its_prefill_and_one_step_a_token() -> None:
    server = Server(SchedulerConfig(), StepCost(base_s=1.0, token_s=0.01, kv_token_s=0.001), FrontEnd(0.5))
    outcome = simulate(requests((2.0, 100, 3)), server)
    assert outcome.ttft_s[0] == pytest.approx(0.5 + 1.0 + 100 * 0.01)
    # decode steps read 101 and 102 tokens
    assert outcome.e2e_s[0] - outcome.ttft_s[0] == pytest.approx(2 * 1.01 + 0.203)
    assert outcome.duration_s == pytest.approx(2.0 + outcome.e2e_s[0])


def test_the_front_end_takes_a_burst_one_by_one() -> None:
    server = Server(SchedulerConfig(), COST, FrontEnd(delay_s=1.0, each_s=0.25))
    outcome = simulate(requests((0, 4, 1), (0, 4, 1), (0, 4, 1)), server)
    assert outcome.queued_ns.tolist() == [1_250_000_000, 1_500_000_000, 1_750_000_000]


def test_a_client_with_two_slots_sends_the_third_request_when_one_has_ended() -> None:
    outcome = simulate(requests((0, 8, 2), (0, 8, 9), (0, 8, 1), max_concurrency=2), Server(SchedulerConfig(), COST))
    assert outcome.sent_ns.tolist() == [0, 0, outcome.ended_ns[0]]


def test_a_request_longer_than_the_context_is_refused_and_recorded() -> None:
    outcome = simulate(requests((0, 60, 5), (0, 8, 2)), Server(SchedulerConfig(max_model_len=64), COST))
    refused, served = outcome.records()
    assert (refused.error_class, refused.status, refused.ok) == ("http_4xx", 400, False)
    assert served.ok and len(served.chunks) == 2
    assert outcome.metrics()["failed"] == 1


@pytest.mark.parametrize("policy", POLICIES)
def test_metrics_without_records_are_those_of_the_records(policy: str) -> None:
    spec = WorkloadSpec(num_prompts=60, request_rate=4.0, scale=0.3)
    config = SchedulerConfig(policy=policy, num_blocks=200, max_num_seqs=16)
    outcome = simulate(traffic_from_spec(spec), Server(config, COST))
    outcome.check()
    slow = run_result_from_records(outcome.records(), source="", settings={}, duration_s=outcome.duration_s).metrics
    assert outcome.metrics().keys() == slow.keys()
    for key, value in outcome.metrics().items():
        assert value == pytest.approx(slow[key], rel=1e-9, abs=1e-9), key


def test_metrics_hold_for_odd_runs_too() -> None:
    """Refusals, drops, preemptions, one-token answers, closed loops."""
    for seed in range(60):
        traffic, server = random_case(seed)
        outcome = simulate(traffic, server)
        outcome.check()
        slow = run_result_from_records(outcome.records(), source="", settings={}, duration_s=outcome.duration_s).metrics
        fast = outcome.metrics()
        if traffic.max_concurrency:  # one ends as another begins: in seconds they may overlap by a rounding
            assert fast.pop("max_concurrent_requests") <= slow.pop("max_concurrent_requests")
        assert fast == pytest.approx(slow, rel=1e-9, abs=1e-9), seed


def test_the_same_traffic_gives_the_same_bytes() -> None:
    case = random_case(5)
    assert simulate(*case).ends_ns.tobytes() == simulate(*case).ends_ns.tobytes()


def test_a_run_s_own_records_replay_it() -> None:
    spec = WorkloadSpec(num_prompts=40, request_rate=5.0, scale=0.2)
    server = Server(SchedulerConfig(num_blocks=300), COST)
    first = simulate(traffic_from_spec(spec), server)
    again = simulate(traffic_from_records(first.records(start_ns=77), start_ns=77), server)
    assert np.array_equal(first.ended_ns, again.ended_ns)


def test_another_cost_model_runs_in_the_step_by_step_loop() -> None:
    class Constant:
        def seconds(self, step: object) -> float:
            return 0.01

    server = Server(SchedulerConfig(), Constant())
    assert simulate(requests((0, 5, 4)), server).duration_s == pytest.approx(0.04)


def test_traffic_that_cannot_be_is_refused_by_name() -> None:
    good = requests((0, 4, 1), (1, 4, 1))
    with pytest.raises(ConfigError, match="planned_ns"):
        replace(good, planned_ns=np.array([5, 4]))
    with pytest.raises(ConfigError, match="output_tokens"):
        replace(good, output_tokens=np.array([0, 1]), max_tokens=np.array([1, 1]))
    with pytest.raises(ConfigError, match="sharegpt"):
        traffic_from_spec(WorkloadSpec(dataset_name="sharegpt", dataset_path=str(Path("x.json"))))


def test_decisions_are_told_step_by_step() -> None:
    decisions: list[Decision] = []
    simulate_stepwise(requests((0, 5, 2)), Server(SchedulerConfig(), COST), decisions=decisions)
    assert [decision.chunks for decision in decisions] == [((0, 0, 5),), ((0, 5, 1),)]
