"""Whole quantised models: tokens and log-probabilities are those of transformers with the weights multiplied out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from parity_world import (
    Loop,
    engine_config,
    first_token_error,
    greedy_requests,
    oracle_greedy,
    prompts_of_mixed_length,
    save_tiny_model,
)
from quant_world import Format, awq, fp8, gptq, int8, packed, quantize_saved

from headrace.core.request import Request, SamplingParams
from headrace.engine.kernels import native
from headrace.engine.model_files import read_facts
from headrace.engine.model_runner import ModelRunner
from headrace.engine.quant.layout import EXPANDED, PACKED, W4A8
from headrace.errors import ConfigError

# Rows and columns are multiples of 128, as in real models: groups of every size, and the int4 kernel, fit.
SIZES: dict[str, object] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "num_hidden_layers": 2,
    "initializer_range": 0.1,
}
FORMATS: dict[str, Format] = {
    "gptq": gptq(size=128),
    "gptq-act-order": gptq(size=32, order=True, symmetric=False),
    "gptq-v2-asymmetric": gptq(size=64, symmetric=False, second=True),
    "gptq-column": gptq(size=-1, symmetric=False),
    "gptq-int8": gptq(bits=8, size=32, order=True),
    "awq": awq(size=64),
    "packed": packed(size=32, symmetric=False, order=True),
    "int8-weights": int8("naive-quantized", activations=False),
    "fp8": fp8("tensor"),
    "fp8-blocks": fp8("block"),
    "fp8-channels": fp8("channel", compressed=True),
}
NEW_TOKENS = 24


@pytest.mark.parametrize("name", FORMATS)
def test_a_quantised_model_is_its_plain_twin(name: str, tmp_path: Path) -> None:
    twin = save_tiny_model("Qwen2ForCausalLM", tmp_path, **SIZES)
    quantize_saved(twin, tmp_path, FORMATS[name])
    prompts = prompts_of_mixed_length(6, longest=40)
    expected, logits = oracle_greedy(twin, prompts, NEW_TOKENS)
    reference = torch.log_softmax(logits, dim=-1)
    for int4 in (PACKED, EXPANDED):
        loop = Loop(engine_config(tmp_path, max_num_batched_tokens=32, int4=int4))
        outputs = loop.generate(greedy_requests(prompts, NEW_TOKENS, logprobs=3))
        assert list(outputs.values()) == expected
        for index in range(len(prompts)):
            for position, entry in enumerate(loop.logprobs[f"r{index}"]):
                for token, value in entry.top:
                    assert value == pytest.approx(reference[index, position, token].item(), abs=5e-5)


def test_quantised_experts_are_their_plain_twin(tmp_path: Path) -> None:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True}
    twin = save_tiny_model("Qwen3MoeForCausalLM", tmp_path, **(SIZES | experts))
    quantize_saved(twin, tmp_path, gptq(size=32, symmetric=False))
    prompts = prompts_of_mixed_length(4, longest=30)
    expected, _ = oracle_greedy(twin, prompts, NEW_TOKENS)
    outputs = Loop(engine_config(tmp_path, int4=PACKED)).generate(greedy_requests(prompts, NEW_TOKENS))
    assert list(outputs.values()) == expected


@pytest.mark.parametrize("experts", [False, True])
@pytest.mark.parametrize("name", ["gptq", "gptq-act-order", "gptq-groups-of-16", "gptq-column", "awq", "packed"])
def test_int8_tokens_cost_little_beside_the_plain_twin(name: str, experts: bool, tmp_path: Path) -> None:
    """The native int4 kernel rounds tokens: close, not equal."""
    if native() is None:
        pytest.skip("torch's int4 kernel multiplies by tokens as they are")
    more = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True}
    family = "Qwen3MoeForCausalLM" if experts else "Qwen2ForCausalLM"
    twin = save_tiny_model(family, tmp_path, **(SIZES | (more if experts else {})))
    quantize_saved(twin, tmp_path, (FORMATS | {"gptq-groups-of-16": gptq(size=16, symmetric=False)})[name])
    prompts = prompts_of_mixed_length(20, longest=40)
    assert 0 < first_token_error(Loop(engine_config(tmp_path, int4=W4A8)), twin, prompts) < 0.03


@pytest.mark.parametrize("layout", ["int-quantized", "naive-quantized"])
def test_int8_activations_cost_little_beside_the_plain_twin(layout: str, tmp_path: Path) -> None:
    """Rounding a token's values to 8 bits is part of this format: close, not equal."""
    twin = save_tiny_model("Qwen3ForCausalLM", tmp_path, **SIZES)
    quantize_saved(twin, tmp_path, int8(layout))
    prompts = prompts_of_mixed_length(20, longest=40)
    assert 0 < first_token_error(Loop(engine_config(tmp_path)), twin, prompts) < 0.05


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["gptq-act-order", "int8"])
def test_batching_never_changes_a_token_of_a_quantised_model(name: str, dtype: str, tmp_path: Path) -> None:
    quantize_saved(save_tiny_model("Qwen3ForCausalLM", tmp_path, **SIZES), tmp_path, (FORMATS | {"int8": int8()})[name])
    requests = greedy_requests(prompts_of_mixed_length(8, longest=60), 12)
    together = Loop(engine_config(tmp_path, dtype=dtype, max_num_batched_tokens=48)).generate(requests)
    runner = ModelRunner(engine_config(tmp_path, dtype=dtype))
    alone = {}
    for request in requests:
        alone |= Loop(engine_config(tmp_path, dtype=dtype), runner).generate([request])
    assert together == alone


@pytest.mark.parametrize("name", ["gptq", "fp8", "awq"])
def test_memory_is_estimated_as_it_is_held(name: str, tmp_path: Path) -> None:
    quantize_saved(save_tiny_model("Qwen3ForCausalLM", tmp_path, **SIZES), tmp_path, FORMATS[name])
    for int4 in (W4A8, PACKED, EXPANDED):
        held = ModelRunner(engine_config(tmp_path, int4=int4)).memory_bytes()["weights"]
        estimate = read_facts(tmp_path).weight_bytes(4, int4=int4)
        rotary_tables = 2 * 512 * (64 if native() is None else 32) * 4  # the native ones hold each angle once
        assert estimate == pytest.approx(held - rotary_tables, rel=0.01)


def test_random_weights_for_a_quantised_model_are_refused(tmp_path: Path) -> None:
    quantize_saved(save_tiny_model("Qwen2ForCausalLM", tmp_path, **SIZES), tmp_path, gptq())
    with pytest.raises(ConfigError, match=r"--load-format dummy.*gptq int4, groups of 32"):
        ModelRunner(engine_config(tmp_path, load_format="dummy"))


def test_nan_in_one_row_of_int8_activations_fails_that_request_alone(tmp_path: Path) -> None:
    twin = save_tiny_model("Qwen3ForCausalLM", tmp_path, **SIZES)
    with torch.no_grad():
        twin.model.embed_tokens.weight[7] = torch.nan
    twin.save_pretrained(tmp_path)
    quantize_saved(twin, tmp_path, int8())
    params = SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True)
    loop = Loop(engine_config(tmp_path))
    outputs = loop.generate([Request("bad", (1, 7), params), Request("good", (1, 2, 3), params)])
    assert "NaN" in loop.errors["bad"]
    assert outputs["good"] == Loop(engine_config(tmp_path)).generate([Request("good", (1, 2, 3), params)])["good"]
