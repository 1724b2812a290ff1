"""Greedy tokens and log-probabilities are those of transformers, for every supported architecture, in fp32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from parity_world import Loop, engine_config, greedy_requests, oracle_greedy, prompts_of_mixed_length, save_tiny_model
from transformers import Qwen2ForCausalLM

_EXPERTS: dict[str, object] = {"num_experts_per_tok": 2, "moe_intermediate_size": 48}
_GEMMA: dict[str, object] = {"sliding_window": 24, "query_pre_attn_scalar": 24}
MODELS: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("LlamaForCausalLM", {}),
    "llama3-rope": (
        "LlamaForCausalLM",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "llama-biases": ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "llama-linear-rope": ("LlamaForCausalLM", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}),
    "llama-dynamic-rope": ("LlamaForCausalLM", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}),
    "mistral": ("MistralForCausalLM", {"sliding_window": None}),
    "qwen2": ("Qwen2ForCausalLM", {"tie_word_embeddings": True}),
    "qwen2-yarn": (
        "Qwen2ForCausalLM",
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}},
    ),
    "qwen3": ("Qwen3ForCausalLM", {"head_dim": 32}),
    "qwen3-moe": (
        "Qwen3MoeForCausalLM",
        _EXPERTS | {"num_experts": 8, "norm_topk_prob": True, "mlp_only_layers": [1], "seed": 7},
    ),
    "qwen3-moe-sparse-step": (
        "Qwen3MoeForCausalLM",
        _EXPERTS | {"num_experts": 8, "norm_topk_prob": False, "decoder_sparse_step": 2, "seed": 5},
    ),
    "mistral-window": ("MistralForCausalLM", {"sliding_window": 24}),
    "qwen2-window": (
        "Qwen2ForCausalLM",
        {"use_sliding_window": True, "sliding_window": 40, "max_window_layers": 1, "seed": 7},
    ),
    "gemma2": ("Gemma2ForCausalLM", _GEMMA | {"attn_logit_softcapping": 4.0, "final_logit_softcapping": 6.0}),
    "gemma3": (
        "Gemma3ForCausalLM",
        _GEMMA
        | {
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500_000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 7_000.0},
            },
        },
    ),
    "mixtral": ("MixtralForCausalLM", _EXPERTS | {"num_local_experts": 4, "sliding_window": None}),
}
NEW_TOKENS = 64


@pytest.mark.parametrize("name", MODELS)
def test_greedy_tokens_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    architecture, overrides = MODELS[name]
    oracle = save_tiny_model(architecture, tmp_path, **overrides)
    prompts = prompts_of_mixed_length(20, longest=100)

    expected, logits = oracle_greedy(oracle, prompts, NEW_TOKENS)

    # A budget that splits prompts and mixes them with decodes.
    loop = Loop(engine_config(tmp_path, max_num_batched_tokens=96))
    outputs = loop.generate(greedy_requests(prompts, NEW_TOKENS, logprobs=3))
    assert [outputs[f"r{index}"] for index in range(len(prompts))] == expected

    # Log-probabilities of the raw distribution, chosen token and alternatives.
    worst = 0.0
    reference = torch.log_softmax(logits, dim=-1)
    for index in range(len(prompts)):
        for position, entry in enumerate(loop.logprobs[f"r{index}"]):
            assert entry.rank == 1
            assert entry.top[0] == (entry.token_id, entry.logprob)
            for token, value in entry.top:
                worst = max(worst, abs(value - reference[index, position, token].item()))
    assert worst < 3e-5, "rounding must stay well below the margins"


def test_sharded_files_give_the_same_model(tmp_path: Path) -> None:
    whole, sharded = tmp_path / "whole", tmp_path / "sharded"
    model = save_tiny_model("Qwen3ForCausalLM", whole)
    model.save_pretrained(sharded, max_shard_size="100KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    requests = greedy_requests(prompts_of_mixed_length(3, longest=20), 8)
    assert Loop(engine_config(whole)).generate(requests) == Loop(engine_config(sharded)).generate(requests)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_half_precision_files_load_into_fp32(stored: torch.dtype, tmp_path: Path) -> None:
    save_tiny_model("Qwen2ForCausalLM", tmp_path / "fp32").to(stored).save_pretrained(tmp_path / "half")
    oracle = Qwen2ForCausalLM.from_pretrained(tmp_path / "half", dtype=torch.float32)
    prompt = prompts_of_mixed_length(2, longest=30)[1]
    expected = oracle.generate(torch.tensor([prompt]), max_new_tokens=16, do_sample=False, pad_token_id=0)
    outputs = Loop(engine_config(tmp_path / "half")).generate(greedy_requests([prompt], 16))
    assert outputs["r0"] == expected[0, len(prompt) :].tolist()


def test_bf16_logprobs_are_close_to_fp32(tmp_path: Path) -> None:
    """Tolerance: 8 bits of mantissa through 3 layers.  Teacher-forced, so that one flipped token does not spread."""
    save_tiny_model("Qwen3ForCausalLM", tmp_path, initializer_range=0.1)
    prompts = prompts_of_mixed_length(40, longest=60)
    # min_tokens is irrelevant: one token each, after the same prompt in both.
    entries = {}
    for dtype in ("float32", "bfloat16"):
        loop = Loop(engine_config(tmp_path, dtype=dtype))
        loop.generate(greedy_requests(prompts, 1, logprobs=256))
        entries[dtype] = [dict(loop.logprobs[f"r{index}"][0].top) for index in range(len(prompts))]
    exact = torch.tensor([[row[token] for token in range(256)] for row in entries["float32"]])
    half = torch.tensor([[row[token] for token in range(256)] for row in entries["bfloat16"]])
    error = (exact - half).abs()
    assert error.mean() < 0.02 * exact.std()
    assert error.max() < 0.15 * exact.std()
