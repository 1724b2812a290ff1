"""`--quantization int8`: plain weights are quantised when loaded; answers stay close, and batching changes no bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from parity_world import (
    Loop,
    engine_config,
    first_token_error,
    greedy_requests,
    prompts_of_mixed_length,
    save_tiny_model,
)

from headrace.engine import kernels
from headrace.engine.config import EngineArgs, resolve
from headrace.engine.kernels.linear import NativeLinear
from headrace.engine.model_files import read_facts
from headrace.engine.model_runner import ModelRunner
from headrace.engine.quant.linears import Int8Linear, int8_rows
from headrace.errors import ConfigError

SIZES: dict[str, object] = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 64, "initializer_range": 0.1}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True}
PROMPTS = prompts_of_mixed_length(8, longest=60)


def test_each_row_of_a_weight_has_its_own_scale() -> None:
    weight = torch.tensor([[0.5, -1.0, 0.25], [0.0, 0.0, 0.0], [100.0, 3.0, -127.0]])
    quantized, scales = int8_rows(weight)
    assert quantized.tolist() == [[64, -127, 32], [0, 0, 0], [100, 3, -127]]
    assert scales[[0, 2], 0].tolist() == pytest.approx([1 / 127, 1.0])


@pytest.mark.parametrize("rows", [1, 2, 5, 33, 70])
def test_a_layer_quantises_and_multiplies(rows: int) -> None:
    """Against the plain formula in float64: sums of int8 products are exact, so only the scaling rounds."""
    native = kernels.native()
    weight, bias, x = torch.randn(96, 515), torch.randn(96), torch.randn(rows, 515)
    quantized, scales = int8_rows(weight)
    token = x.abs().amax(dim=1, keepdim=True) / 127
    exact = (x / token).round().double() @ quantized.double().t() * scales.double().t() * token.double() + bias.double()
    layers = [Int8Linear(quantized, scales, bias, "plain")]
    if native is not None:
        layers.append(NativeLinear(native, [quantized], bias, scales=scales))  # type: ignore[arg-type]
    for layer in layers:
        torch.testing.assert_close(layer(x), exact.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("is_native", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_logits_stay_close_to_the_plain_model(
    tied: bool, is_native: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = save_tiny_model("Qwen2ForCausalLM", tmp_path, **SIZES, tie_word_embeddings=tied)
    if not is_native:
        monkeypatch.setattr(kernels, "load", lambda: (None, "left out"))
    loop = Loop(engine_config(tmp_path, quantization="int8"))
    assert 0 < first_token_error(loop, twin, PROMPTS) < 0.05


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("family", "more"), [("Qwen3ForCausalLM", {}), ("Qwen3MoeForCausalLM", EXPERTS)])
def test_batching_changes_no_bit(family: str, more: dict[str, object], dtype: str, tmp_path: Path) -> None:
    save_tiny_model(family, tmp_path, **SIZES, **more)
    requests = greedy_requests(PROMPTS, 12, logprobs=5)
    settings = {"dtype": dtype, "quantization": "int8"}
    company = Loop(engine_config(tmp_path, max_num_batched_tokens=48, **settings))
    together = company.generate(requests)
    runner = ModelRunner(engine_config(tmp_path, **settings))
    for request in requests:
        alone = Loop(engine_config(tmp_path, **settings), runner)
        assert alone.generate([request])[request.request_id] == together[request.request_id]
        if kernels.native() is not None:
            assert alone.logprobs[request.request_id] == company.logprobs[request.request_id]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("family", "more"), [("Qwen2ForCausalLM", {}), ("Qwen3MoeForCausalLM", EXPERTS)])
def test_memory_is_estimated_as_it_is_held(family: str, more: dict[str, object], tied: bool, tmp_path: Path) -> None:
    if kernels.native() is None:
        pytest.skip("without native kernels and VNNI the twin multiplies in float64")
    save_tiny_model(family, tmp_path, **SIZES, **more, tie_word_embeddings=tied)
    held, plain = (
        ModelRunner(engine_config(tmp_path, quantization=each)).memory_bytes()["weights"] for each in ("int8", "none")
    )
    facts = read_facts(tmp_path)
    difference = facts.weight_bytes(4) - facts.weight_bytes(4, to_int8=True)
    assert plain - held == pytest.approx(difference, rel=0.01)
    assert (held < plain / 2) or tied


def test_the_configuration_says_it() -> None:
    config, reasons = resolve(EngineArgs(quantization="int8"), environ={}, free_memory_bytes=8 << 30)
    assert config.quantization == "int8" and config.to_int8
    (line,) = [reason for reason in reasons if reason.startswith("quantization")]
    assert "int8, tokens as well" in line and "quantised when they are loaded" in line
    assert resolve(EngineArgs(), environ={}, free_memory_bytes=8 << 30)[0].quantization == "none"


def test_a_quantised_checkpoint_is_refused(tmp_path: Path) -> None:
    from quant_world import gptq, quantize_saved

    quantize_saved(save_tiny_model("Qwen2ForCausalLM", tmp_path, **SIZES), tmp_path, gptq(size=32))
    with pytest.raises(
        ConfigError, match=r"--quantization int8: the model's weights are quantised already \(gptq int4"
    ):
        resolve(EngineArgs(model=str(tmp_path), quantization="int8"), environ={}, free_memory_bytes=8 << 30)
