"""A KV cache for 1.2 requests: whoever waits is served in the end, with the tokens of an ample cache."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from parity_world import VOCAB, Loop, engine_config, greedy_requests, save_tiny_model

from headrace.engine.model_runner import ModelRunner

NEW_TOKENS = 28
CONTEXT = 128  # 8 blocks of 16
TIGHT, AMPLE = 10, 400
POLICIES = {
    "v1": {"scheduler_version": "v1", "enable_chunked_prefill": True},
    "v1-whole": {"scheduler_version": "v1", "enable_chunked_prefill": False},
    "v0": {"scheduler_version": "v0", "enable_chunked_prefill": False},
    "v0-chunked": {"scheduler_version": "v0", "enable_chunked_prefill": True},
}


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> ModelRunner:
    directory: Path = tmp_path_factory.mktemp("tiny")
    save_tiny_model("Qwen3ForCausalLM", directory)
    return ModelRunner(engine_config(directory, max_model_len=CONTEXT, num_kv_blocks=AMPLE))


@pytest.mark.parametrize("count", [8, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_cache_for_one_and_a_fifth_serves_everybody(policy: str, count: int, runner: ModelRunner) -> None:
    """All are queued at once; each needs up to 8 blocks, and there are 10."""
    chance = random.Random(3)
    prompts = [[chance.randrange(VOCAB) for _ in range(chance.randrange(20, 100))] for _ in range(count)]
    requests = greedy_requests(prompts, NEW_TOKENS)
    ample = Loop(replace(runner.config, **POLICIES[policy]), runner).generate(requests)
    tight = Loop(replace(runner.config, num_kv_blocks=TIGHT, **POLICIES[policy]), runner)
    assert tight.generate(requests) == ample
    assert [len(tokens) for tokens in ample.values()] == [NEW_TOKENS] * count
    assert tight.scheduler.counters.preemptions > 0
    # No livelock: a step computes something, so nobody waits for more than all the work that there is.
    assert tight.scheduler.num_steps < 4 * count * CONTEXT
    assert tight.scheduler.blocks.num_free == TIGHT
