"""The engine and the simulator run one scheduler: given the same arrivals and step times, they decide alike."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from engine_world import ScriptedRunner, config, request

from headrace.clock import FakeClock
from headrace.core.batch import Batch
from headrace.engine.config import scheduler_config
from headrace.engine.engine import Engine
from headrace.engine.step_log import StepLog, StepLogConfig
from headrace.lab.sim import Server, StepCost, Traffic
from headrace.lab.sim.stepwise import Decision, RecordedStep, simulate_stepwise

SETTINGS = {
    "v1": {"scheduler_version": "v1", "enable_chunked_prefill": True},
    "v1-whole": {"scheduler_version": "v1", "enable_chunked_prefill": False, "max_num_batched_tokens": 256},
    "v0-chunked": {"scheduler_version": "v0", "enable_chunked_prefill": True},
    "v0": {"scheduler_version": "v0", "enable_chunked_prefill": False, "max_num_batched_tokens": 256},
}


@pytest.mark.parametrize("policy", SETTINGS)
@pytest.mark.parametrize("num_kv_blocks", [128, 24])
def test_the_decision_log_of_a_live_engine_is_the_simulator_s(policy: str, num_kv_blocks: int, tmp_path: Path) -> None:
    rng = random.Random(f"{policy} {num_kv_blocks}")
    lengths = [(rng.randint(1, 40), rng.randint(1, 30)) for _ in range(40)]
    due = sorted(rng.randint(0, 400) * 1_000_000 for _ in lengths)
    clock, runner = FakeClock(), ScriptedRunner()

    def compute(batch: Batch) -> None:
        clock.advance_ns(1_000_000 + 50_000 * batch.num_tokens + rng.randint(0, 3_000_000))

    runner.before = compute
    settings = config(num_kv_blocks=num_kv_blocks, **SETTINGS[policy])
    log = StepLog(StepLogConfig(tmp_path / "steps.jsonl", with_requests=True), {})
    engine = Engine(settings, runner, clock=clock, step_log=log)
    waiting = list(range(len(lengths)))
    while waiting or engine.has_work:
        while waiting and due[waiting[0]] <= clock.now_ns():
            index = waiting.pop(0)
            prompt, output = lengths[index]
            engine.add(request(str(index), "x" * prompt, max_tokens=output, ignore_eos=True))
        if engine.has_work:
            engine.step()
        else:
            clock.advance_ns(due[waiting[0]] - clock.now_ns())
    engine.close()
    steps = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()][1:]

    table = np.array(lengths, np.int64)
    traffic = Traffic(np.array(due, np.int64), table[:, 0], table[:, 1])
    recorded = [RecordedStep(round(step["start_s"] * 1e9), round(step["end_s"] * 1e9)) for step in steps]
    decisions: list[Decision] = []
    server = Server(scheduler_config(settings), StepCost(base_s=1.0))
    outcome = simulate_stepwise(traffic, server, decisions=decisions, recorded=recorded)
    outcome.check()

    live = [tuple((int(name), start, length) for name, start, length in step["chunks"]) for step in steps]
    assert [decision.chunks for decision in decisions] == live
    assert [len(decision.preempted) for decision in decisions] == [step["preempted"] for step in steps]
    assert [len(decision.admitted) for decision in decisions] == [step["admitted"] for step in steps]
    if num_kv_blocks == 24:
        assert outcome.preemptions.sum() == engine.stats().num_preemptions > 0
