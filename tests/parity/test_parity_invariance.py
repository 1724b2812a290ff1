"""A request's greedy tokens do not depend on budgets, policies, block sizes, prefix caching, preemption or company."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from parity_world import Loop, engine_config, greedy_requests, prompts_of_mixed_length, save_tiny_model

from headrace.core.scheduler import Speculation
from headrace.engine import kernels
from headrace.engine.models.layers import can_pack

NEW_TOKENS = 24
PROMPTS = prompts_of_mixed_length(10, longest=120, seed=11)
# Two prompts with a long common beginning, so that prefix caching has something to find.
PROMPTS += [[*PROMPTS[1][:70], 9, 9], [*PROMPTS[1][:70], 8], list(PROMPTS[1])]

POLICIES = {
    "v1": {"scheduler_version": "v1", "enable_chunked_prefill": True},
    "v1-whole": {"scheduler_version": "v1", "enable_chunked_prefill": False},
    "v0": {"scheduler_version": "v0", "enable_chunked_prefill": False},
    "v0-chunked": {"scheduler_version": "v0", "enable_chunked_prefill": True},
}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    save_tiny_model("Qwen3ForCausalLM", directory)
    return directory


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> str:
    if request.param == "bfloat16" and kernels.native() is None and not can_pack(torch.bfloat16):
        pytest.skip("bf16 rows are independent of the batch only in native kernels and in oneDNN's bf16 kernels")
    return str(request.param)


@pytest.fixture(scope="module")
def alone(model_dir: Path, dtype: str) -> list[list[int]]:
    """The truth: every request by itself, its prompt in one piece."""
    loop = Loop(engine_config(model_dir, dtype=dtype))
    return [loop.generate(greedy_requests([prompt], NEW_TOKENS))["r0"] for prompt in PROMPTS]


def in_company(model_dir: Path, dtype: str, **settings: object) -> tuple[list[list[int]], Loop]:
    loop = Loop(engine_config(model_dir, dtype=dtype, **settings))
    outputs = loop.generate(greedy_requests(PROMPTS, NEW_TOKENS))
    return [outputs[f"r{index}"] for index in range(len(PROMPTS))], loop


# From one block to far above the context; policies that do not chunk need a budget of the longest prompt.
@pytest.mark.parametrize(
    ("policy", "budget"),
    [
        (policy, budget)
        for policy, flags in POLICIES.items()
        for budget in (16, 48, 160, 2048)
        if flags["enable_chunked_prefill"] or budget >= 160
    ],
)
def test_budget_and_policy_do_not_change_tokens(
    policy: str, budget: int, model_dir: Path, dtype: str, alone: list[list[int]]
) -> None:
    outputs, _ = in_company(
        model_dir, dtype, max_num_batched_tokens=budget, max_num_seqs=13, max_model_len=160, **POLICIES[policy]
    )
    assert outputs == alone


@pytest.mark.parametrize("block_size", [1, 8, 16, 24, 128])
def test_block_size_does_not_change_tokens(
    block_size: int, model_dir: Path, dtype: str, alone: list[list[int]]
) -> None:
    blocks = 13 * (160 // block_size + 1)
    outputs, _ = in_company(model_dir, dtype, block_size=block_size, num_kv_blocks=blocks, max_num_batched_tokens=100)
    assert outputs == alone


@pytest.mark.parametrize("policy", ["v1", "v1-whole", "v0"])
def test_prefix_cache_cold_and_warm_do_not_change_tokens(
    policy: str, model_dir: Path, dtype: str, alone: list[list[int]]
) -> None:
    cold, loop = in_company(
        model_dir, dtype, enable_prefix_caching=True, max_num_batched_tokens=512, **POLICIES[policy]
    )
    hits_when_cold = loop.scheduler.counters.prefix_hits
    warm = loop.generate(greedy_requests(PROMPTS, NEW_TOKENS))
    assert cold == alone
    assert [warm[f"r{index}"] for index in range(len(PROMPTS))] == alone
    assert loop.scheduler.counters.prefix_hits > hits_when_cold


@pytest.mark.parametrize("policy", POLICIES)
def test_forced_preemption_does_not_change_tokens(
    policy: str, model_dir: Path, dtype: str, alone: list[list[int]]
) -> None:
    outputs, loop = in_company(
        model_dir, dtype, num_kv_blocks=22, max_num_batched_tokens=160, max_model_len=160, **POLICIES[policy]
    )
    assert outputs == alone
    assert loop.scheduler.counters.preemptions > 0


def test_threads_do_not_change_tokens(model_dir: Path, dtype: str, alone: list[list[int]]) -> None:
    try:
        loop = Loop(engine_config(model_dir, dtype=dtype, num_threads=2, max_num_batched_tokens=64))
        outputs = loop.generate(greedy_requests(PROMPTS[:4], 8))
    finally:
        torch.set_num_threads(1)
    assert [outputs[f"r{index}"] for index in range(4)] == [tokens[:8] for tokens in alone[:4]]


def test_logprobs_are_bit_identical_alone_and_in_company(model_dir: Path) -> None:
    """Stronger than equal tokens: not one bit of the reported log-probabilities differs.

    It holds for oneDNN's packed fp32 products, and for MKL's with the paddings of attention.paged.
    """
    if not can_pack(torch.float32):
        pytest.skip("needs oneDNN")
    single = Loop(engine_config(model_dir))
    expected = {}
    for index, prompt in enumerate(PROMPTS):
        single.generate(greedy_requests([prompt], NEW_TOKENS, logprobs=2))
        expected[f"r{index}"] = single.logprobs.pop("r0")
    together = Loop(engine_config(model_dir, max_num_batched_tokens=56))
    together.generate(greedy_requests(PROMPTS, NEW_TOKENS, logprobs=2))
    assert together.logprobs == expected


def repetitive(count: int) -> list[list[int]]:
    """Prompts that repeat themselves, so that there is something to guess (and mostly guessed wrong)."""
    return [[*PROMPTS[index % 10][:9]] * 4 + PROMPTS[index % 10][:5] for index in range(count)]


@pytest.mark.parametrize("policy", POLICIES)
def test_speculation_does_not_change_a_bit(policy: str, model_dir: Path, dtype: str) -> None:
    """Tokens and reported log-probabilities are those of a plain engine, whatever was guessed and verified together."""
    if not can_pack(torch.float32):
        pytest.skip("needs oneDNN")
    prompts = [*repetitive(6), *PROMPTS[:4]]
    expected = {}
    plain = Loop(engine_config(model_dir, dtype=dtype))
    for index, prompt in enumerate(prompts):
        name = f"r{index}"
        tokens = plain.generate(greedy_requests([prompt], 2 * NEW_TOKENS, logprobs=2))["r0"]
        expected[name] = (tokens, plain.logprobs.pop("r0"))
    drafting = Loop(
        engine_config(model_dir, dtype=dtype, speculation=Speculation(4, 3, 1), max_model_len=200, **POLICIES[policy])
    )
    outputs = drafting.generate(greedy_requests(prompts, 2 * NEW_TOKENS, logprobs=2))
    assert {name: (outputs[name], drafting.logprobs[name]) for name in outputs} == expected
    counters = drafting.scheduler.counters
    assert 0 < counters.accepted_tokens < counters.draft_tokens
