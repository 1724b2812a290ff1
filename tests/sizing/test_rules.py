"""Every rule of legality: its id, its words, and a fix that names flag, bound and value."""

from __future__ import annotations

from dataclasses import replace

import pytest

from headrace.sizing.context import context_limit_message, fit_max_model_len
from headrace.sizing.rules import MemoryFacts, ServeSettings, Violation, errors, explain, violations

LEGAL = ServeSettings(max_num_batched_tokens=2048, max_num_seqs=256, max_model_len=1024)
GIB = 1 << 30


def only(settings: ServeSettings, memory: MemoryFacts | None = None) -> Violation:
    found = violations(settings, memory)
    assert len(found) == 1, found
    return found[0]


def test_a_legal_combination_breaks_nothing() -> None:
    assert violations(LEGAL) == ()
    assert violations(replace(LEGAL, scheduler_version="v0", enable_chunked_prefill=False)) == ()


def test_r1_whole_prompts_must_fit_the_budget() -> None:
    found = only(replace(LEGAL, enable_chunked_prefill=False, max_model_len=4096))
    assert (found.rule, found.severity, found.flag) == ("R1", "error", "--max-num-batched-tokens")
    assert found.message == (
        "max_num_batched_tokens (2048) is smaller than max_model_len (4096). This effectively limits the maximum "
        "sequence length to max_num_batched_tokens and makes vLLM reject longer sequences. Please increase "
        "max_num_batched_tokens or decrease max_model_len."
    )
    assert found.fix == (
        "Raise --max-num-batched-tokens from 2048 to at least 4096, lower --max-model-len from 4096 to at most 2048, "
        "or switch chunked prefill on."
    )


def test_r1_holds_for_both_versions_and_only_without_chunks() -> None:
    for version in ("v0", "v1"):
        settings = replace(LEGAL, max_model_len=4096, scheduler_version=version)
        assert violations(settings) == ()
        assert only(replace(settings, enable_chunked_prefill=False)).rule == "R1"


def test_r2_every_seat_needs_a_token() -> None:
    found = only(replace(LEGAL, max_num_batched_tokens=64))
    assert found.rule == "R2"
    assert found.message == "max_num_batched_tokens (64) must be greater than or equal to max_num_seqs (256)."
    assert explain(found) == (
        "R2: --max-num-batched-tokens is 64 but must be at least 256 (the value of --max-num-seqs); raise "
        "--max-num-batched-tokens from 64 to at least 256, or lower --max-num-seqs from 256 to at most 64."
    )


def test_r3_warns_of_a_budget_that_nobody_can_use_and_v0_does_not() -> None:
    settings = replace(LEGAL, max_num_seqs=1, max_model_len=1000)
    found = only(settings)
    assert (found.rule, found.severity) == ("R3", "warning")
    assert found.message.startswith("max_num_batched_tokens (2048) exceeds max_num_seqs * max_model_len (1000).")
    assert errors((found,)) == ()
    assert violations(replace(settings, scheduler_version="v0")) == ()


def test_r4_v0_chunks_with_a_prefix_cache_end_at_block_borders() -> None:
    settings = replace(LEGAL, max_num_batched_tokens=1000, enable_prefix_caching=True, scheduler_version="v0")
    found = only(settings)
    assert found.rule == "R4"
    assert found.message == (
        "When enabling chunked prefill and prefix caching, max_num_batched_tokens (chunk size) must be dividable by "
        "block size, but got chunk_size (1000) % block_size (16) = 8"
    )
    assert "992 or 1008" in found.fix
    assert violations(replace(settings, scheduler_version="v1")) == ()
    assert violations(replace(settings, enable_prefix_caching=False)) == ()


def test_r5_partial_prefills_need_chunked_prefill() -> None:
    found = only(replace(LEGAL, enable_chunked_prefill=False, max_num_partial_prefills=2))
    assert found.rule == "R5"
    assert found.message == "Chunked prefill must be enabled to set max_num_partial_prefills > 1."


def test_r6_bounds_of_long_prefills() -> None:
    threshold = only(replace(LEGAL, long_prefill_token_threshold=1025))
    assert threshold.rule == "R6"
    assert threshold.message == "long_prefill_token_threshold (1025) cannot be greater than the max_model_len (1024)."
    partial = only(replace(LEGAL, max_long_partial_prefills=2))
    assert partial.rule == "R6"
    assert partial.message.startswith("max_long_partial_prefills (2) must be greater than or equal to 1 and less than")


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        ({"max_num_batched_tokens": 0}, "--max-num-batched-tokens"),
        ({"max_num_seqs": -5}, "--max-num-seqs"),
        ({"max_model_len": 0}, "--max-model-len"),
        ({"block_size": 0}, "--block-size"),
        ({"max_num_partial_prefills": 0}, "--max-num-partial-prefills"),
        ({"max_long_partial_prefills": 0}, "--max-long-partial-prefills"),
        ({"long_prefill_token_threshold": -1}, "--long-prefill-token-threshold"),
    ],
)
def test_r7_names_the_size_that_is_none(change: dict[str, int], flag: str) -> None:
    found = only(replace(LEGAL, **change))  # type: ignore[arg-type]
    assert (found.rule, found.flag) == ("R7", flag)
    assert f"Input should be greater than or equal to {0 if 'threshold' in flag else 1}" in found.message
    assert flag in found.fix


def test_r8_lists_the_known_names() -> None:
    found = only(replace(LEGAL, scheduling_policy="lifo"))
    assert (found.rule, found.message) == ("R8", "Unknown scheduling policy: lifo")
    assert "fcfs, priority" in found.fix
    assert "v0, v1" in only(replace(LEGAL, scheduler_version="v2")).fix


def test_r9_v0_states_the_largest_legal_length() -> None:
    found = only(replace(LEGAL, scheduler_version="v0", kv_tokens=1000))
    assert found.rule == "R9"
    assert found.message == (
        "The model's max seq len (1024) is larger than the maximum number of tokens that can be stored in KV cache "
        "(1000). Try increasing `gpu_memory_utilization` or decreasing `max_model_len` when initializing the engine."
    )
    assert "to at most 992" in found.fix  # 62 whole blocks of 16
    assert violations(replace(LEGAL, scheduler_version="v0", max_model_len=992, kv_tokens=1000)) == ()


def test_r10_v1_estimates_the_largest_length_in_its_own_words() -> None:
    found = only(replace(LEGAL, kv_tokens=1000))
    assert found.rule == "R10"
    assert "the estimated maximum model length is 992." in found.message
    memory = MemoryFacts(80 * GIB, 80 * GIB, 0.9, kv_bytes_per_token=320 * 1024)
    big = only(replace(LEGAL, max_model_len=102_000, kv_tokens=98_832), memory)
    assert big.message.startswith(
        "To serve at least one request with the model's max seq len (102000), 31.13 GiB KV cache is needed, which is "
        "larger than the available KV cache memory (30.16 GiB). Based on the available memory, the estimated maximum "
        "model length is 98832. Try increasing"
    )


def test_r11_shows_what_the_memory_went_to() -> None:
    memory = MemoryFacts(24 * GIB, 24 * GIB, 0.9, budget=(("weights", 20 * GIB), ("activations", 3 * GIB)))
    found = only(replace(LEGAL, kv_tokens=0), memory)
    assert found.rule == "R11"
    assert found.message == (
        "No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing the "
        "engine."
    )
    assert "weights 20.00 GiB, activations 3.00 GiB" in found.bound


def test_r12_states_the_share_that_is_free() -> None:
    found = only(LEGAL, MemoryFacts(40 * GIB, 80 * GIB, 0.9, device="cuda:0"))
    assert found.rule == "R12"
    assert found.message.startswith(
        "Free memory on device cuda:0 (40.00/80.00 GiB) on startup is less than desired GPU memory utilization "
        "(0.9, 72.00 GiB)."
    )
    assert "at most 0.5" in found.fix


def test_r13_gives_the_numbers() -> None:
    assert context_limit_message(512, 500, 100).startswith(
        "This model's maximum context length is 512 tokens. However, you requested 100 output tokens and your prompt "
        "contains at least 500 input tokens, for a total of at least 600 tokens."
    )
    assert context_limit_message(512, 513, None).startswith(
        "This model's maximum context length is 512 tokens. However, your prompt contains 513 input tokens."
    )


def test_r14_auto_fits_the_length_to_the_cache_or_says_why_it_cannot() -> None:
    auto = replace(LEGAL, max_model_len=-1)
    found = only(auto)
    assert (found.rule, found.flag, found.value) == ("R14", "--max-model-len", "auto (-1)")
    assert violations(replace(auto, kv_tokens=1000)) == ()
    assert fit_max_model_len(None, 1000) == 992
    assert fit_max_model_len(512, 1000) == 512
    # The fitted length takes part in the other rules: 4000 tokens of cache, a budget of 2048, no chunks.
    assert only(replace(auto, kv_tokens=4000, enable_chunked_prefill=False)).rule == "R1"


def test_several_broken_rules_are_all_reported_in_order() -> None:
    found = violations(replace(LEGAL, max_num_batched_tokens=128, enable_chunked_prefill=False))
    assert [violation.rule for violation in found] == ["R1", "R2"]


# The seven budgets of the published campaign, on and off, with everything but the two factors held fixed
# (256 seats, 102 000 tokens).  The pool is known where the published logs give it; V0 checks R1 and R2 before
# it sizes the pool, so an off round never gets that far.
PUBLISHED_POOL = {4096: 100_928, 8192: 98_832}
PUBLISHED_GRID = {
    ("on", 64): ("R2",),
    ("on", 128): ("R2",),
    ("on", 256): (),
    ("on", 512): (),
    ("on", 2048): (),
    ("on", 4096): ("R9",),
    ("on", 8192): ("R9",),
    ("off", 64): ("R1", "R2"),
    ("off", 128): ("R1", "R2"),
    ("off", 256): ("R1",),
    ("off", 512): ("R1",),
    ("off", 2048): ("R1",),
    ("off", 4096): ("R1",),
    ("off", 8192): ("R1",),
}


@pytest.mark.parametrize(("cell", "expected"), PUBLISHED_GRID.items(), ids=lambda value: str(value))
def test_the_published_campaigns_grid_is_mostly_illegal(cell: tuple[str, int], expected: tuple[str, ...]) -> None:
    chunked, budget = cell
    settings = ServeSettings(
        max_num_batched_tokens=budget,
        max_num_seqs=256,
        max_model_len=102_000,
        enable_chunked_prefill=chunked == "on",
        scheduler_version="v0",
        kv_tokens=PUBLISHED_POOL.get(budget) if chunked == "on" else None,
    )
    assert tuple(violation.rule for violation in violations(settings)) == expected
