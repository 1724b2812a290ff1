"""Formulas against public models: real config.json files, sizes that vLLM reported, and counts made by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import ConfigError
from headrace.sizing import memory
from headrace.sizing.model_shape import ModelShape, model_shape
from headrace.sizing.roofline import roofline

GIB, KIB = 1 << 30, 1 << 10
QWEN25_72B: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "vocab_size": 152064,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
}
TINY = ModelShape(
    architecture="LlamaForCausalLM",
    vocab_size=100,
    hidden_size=8,
    intermediate_size=20,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=3,
    max_position_embeddings=64,
    tie_word_embeddings=False,
)


def shape_of(shared_data: Path, name: str) -> ModelShape:
    (path,) = (shared_data / "model-configs" / name).rglob("config.json")
    return model_shape(json.loads(path.read_text()), name)


@pytest.mark.parametrize(
    ("name", "kib"),
    [
        ("qwen2.5-7b-instruct", 56),
        ("Qwen--Qwen3-0.6B", 112),  # head_dim 128 is not hidden_size / heads = 64
        ("qwen3-4b", 144),
        ("Qwen--Qwen3-8B", 144),
        ("llama-2-7b-hf", 512),  # every head has its own keys
        ("meta-llama--Meta-Llama-3.1-8B", 128),
        ("meta-llama--Meta-Llama-3.1-405B", 504),
        ("mistralai--Mixtral-8x7B-v0.1", 128),
        ("Qwen--Qwen3-30B-A3B", 96),
        ("Qwen--Qwen3-235B-A22B-FP8", 188),
    ],
)
def test_kv_bytes_per_token_of_public_models(shared_data: Path, name: str, kib: int) -> None:
    assert memory.kv_bytes_per_token(shape_of(shared_data, name), 2) == kib * KIB


def test_the_published_campaigns_model_takes_320_kib_a_token_and_its_pool_31_gib() -> None:
    per_token = memory.kv_bytes_per_token(model_shape(QWEN25_72B), 2)
    assert per_token == 320 * KIB
    assert 102_000 * per_token / GIB == pytest.approx(31.13, abs=0.01)  # the formula with query heads says 249


@pytest.mark.parametrize(
    ("name", "gib"),
    [
        ("qwen2.5-7b-instruct", 14.18),
        ("Qwen--Qwen3-0.6B", 1.11),  # tied: the head counts once
        ("meta-llama--Meta-Llama-3.1-8B", 14.96),
        ("Qwen--Qwen3-8B", 15.26),
    ],
)
def test_weights_of_public_models(shared_data: Path, name: str, gib: float) -> None:
    assert memory.weight_bytes(shape_of(shared_data, name), 2) / GIB == pytest.approx(gib, abs=0.01)


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [("mistralai--Mixtral-8x7B-v0.1", 46.7e9, 12.9e9), ("Qwen--Qwen3-30B-A3B", 30.5e9, 3.3e9)],
)
def test_a_token_uses_few_of_the_experts(shared_data: Path, name: str, total: float, active: float) -> None:
    count = memory.parameters(shape_of(shared_data, name))
    assert count.total == pytest.approx(total, rel=0.01)
    assert count.total - count.mlp + count.active_mlp == pytest.approx(active, rel=0.02)


def test_counts_by_hand() -> None:
    count = memory.parameters(TINY)
    assert count.attention == 2 * (8 * 12 + 2 * 8 * 6 + 12 * 8)
    assert count.mlp == count.active_mlp == 2 * 3 * 8 * 20
    assert (count.embedding, count.head, count.norms) == (800, 800, 2 * 16 + 8)
    biased = memory.parameters(replace(TINY, qkv_bias=True, output_bias=True, mlp_bias=True, qk_norm=True))
    assert biased.attention - count.attention == 2 * (12 + 2 * 6 + 8)
    assert biased.mlp - count.mlp == 2 * (2 * 20 + 8)
    assert biased.norms - count.norms == 2 * 2 * 3


def test_the_larger_of_forward_pass_and_sampler_is_the_peak() -> None:
    llama = replace(TINY, hidden_size=4096, intermediate_size=14336, vocab_size=128_256, num_heads=32, head_dim=128)
    # Slope per token of the budget in 16 bits: 3 I + 2 H (vLLM, V0, RTX 3090: 109.8 kB measured).
    assert memory.forward_bytes(llama, 1, 2) == 102_400
    assert memory.activation_bytes(llama, 8192, 1, 2) == 8192 * 102_400
    assert memory.activation_bytes(llama, 256, 256, 2) == 256 * 128_256 * 4 * memory.SAMPLER_UNITS
    assert memory.activation_bytes(llama, 16, 256, 2) == 16 * 128_256 * 4 * memory.SAMPLER_UNITS  # no more rows than T


def test_blocks_are_what_is_left_and_never_less_than_none() -> None:
    assert memory.kv_blocks_that_fit(1000, 0.9, 500, 100, 7) == 300 // 7
    assert memory.kv_blocks_that_fit(1000, 0.5, 500, 100, 7) == 0


def test_the_largest_step_that_fits() -> None:
    tokens, rows = memory.step_that_fits(TINY, 1_000_000)
    assert memory.activation_bytes(TINY, tokens, rows) <= 1_000_000
    assert memory.activation_bytes(TINY, tokens + 1, rows) > 1_000_000
    assert memory.activation_bytes(TINY, tokens, rows + 1) > 1_000_000
    assert memory.step_that_fits(TINY, -1) == (0, 0)


def test_a_sequence_owns_whole_blocks() -> None:
    assert memory.sequences_that_fit(100, 16, 160) == 10
    assert memory.sequences_that_fit(100, 16, 161) == pytest.approx(100 / 11)


@pytest.mark.parametrize(
    "key", ["hidden_size", "intermediate_size", "vocab_size", "num_hidden_layers", "max_position_embeddings"]
)
def test_a_missing_key_is_an_error_and_never_a_guess(key: str) -> None:
    config = {name: value for name, value in QWEN25_72B.items() if name != key}
    with pytest.raises(ConfigError, match=f"config.json: key '{key}' is missing"):
        model_shape(config)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "are not known here; known: LlamaForCausalLM"),
        ({"architectures": None}, "architectures None are not known"),
        ({"hidden_size": 0}, "hidden_size must be a positive integer, not 0"),
        ({"num_key_value_heads": 7}, "64 is not a multiple of num_key_value_heads 7"),
        ({"architectures": ["MixtralForCausalLM"]}, "key 'num_local_experts' is missing"),
    ],
)
def test_what_cannot_be_read_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        model_shape({**QWEN25_72B, **changes})


def test_a_decode_step_reads_all_but_the_embedding_table_and_the_idle_experts() -> None:
    count = memory.parameters(TINY)
    read = 2 * (count.total - count.embedding)
    bound = roofline(TINY, read, bytes_per_s=1e6, flops_per_s=1e6)
    assert bound.step_bytes == read
    assert bound.decode_tokens_per_s == 1e6 / bound.step_bytes
    assert bound.flops_per_token == 2 * (count.attention + count.mlp)
    longer = roofline(TINY, read, 1e6, 1e6, context_bytes=10 * memory.kv_bytes_per_token(TINY, 2))
    assert longer.step_bytes - bound.step_bytes == 10 * memory.kv_bytes_per_token(TINY, 2)


def test_the_roofline_of_a_known_machine(shared_data: Path) -> None:
    # Two cores of a Zen 4 at 45 GB/s: 38 tokens/s at batch 1 for Qwen3-0.6B, whose tied head is read in each step.
    shape = shape_of(shared_data, "Qwen--Qwen3-0.6B")
    assert roofline(shape, memory.weight_bytes(shape, 2), 45e9, 470e9).decode_tokens_per_s == pytest.approx(38, abs=1)
