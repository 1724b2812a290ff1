"""quantization_config -> how weights are stored, or one sentence with what is supported; and what that costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from headrace.engine.config import GIB, EngineArgs, resolve
from headrace.engine.demo import DEMO_DIRECTORY
from headrace.engine.models.shape import ModelShape, model_shape
from headrace.engine.models.tensors import linear_modules, other_tensors
from headrace.engine.quant.config import SUPPORTED, read_quantization
from headrace.engine.quant.layout import EXPANDED, PACKED, W4A8
from headrace.errors import ConfigError

GPTQ: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True, "sym": True}
INT8 = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
TOKENS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}


def compressed(weights: dict[str, Any], inputs: dict[str, Any] | None, layout: str = "int-quantized") -> dict[str, Any]:
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": inputs}}
    return {"quant_method": "compressed-tensors", "format": layout, "config_groups": groups}


@pytest.mark.parametrize(
    ("section", "words"),
    [
        (GPTQ, "gptq int4, groups of 128, inputs in activation order"),
        (GPTQ | {"group_size": -1, "desc_act": False, "bits": 8}, "gptq int8, one group a column"),
        ({"quant_method": "awq", "bits": 4, "group_size": 64, "version": "GEMM"}, "awq int4, groups of 64"),
        ({"quant_method": "fp8", "activation_scheme": "static"}, "fp8 fp8"),
        (compressed(INT8, TOKENS), "compressed-tensors int8, int8 activations"),
        (compressed(INT8, None, "naive-quantized"), "compressed-tensors int8"),
    ],
)
def test_a_supported_format_is_described(section: dict[str, Any], words: str) -> None:
    assert str(read_quantization(section, "config.json")) == words


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "quant_method 'bitsandbytes' is not supported"),
        ({"quant_method": "mxfp4"}, "quant_method 'mxfp4' is not supported"),
        ({"bits": 4}, "quant_method None is not supported"),
        (GPTQ | {"bits": 3}, "bits 3 is not supported; supported: 4, 8"),
        (GPTQ | {"group_size": 100}, "group_size 100 is not supported; supported: -1, 16, 32"),
        (GPTQ | {"checkpoint_format": "marlin"}, "checkpoint_format 'marlin' is not supported; supported: 'gptq'"),
        (GPTQ | {"dynamic": {"+:.*down.*": {"bits": 8}}}, "dynamic"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "awq version 'gemv' is not supported"),
        ({"quant_method": "awq", "bits": 4, "zero_point": False}, "zero_point False is not supported"),
        ({"quant_method": "fp8", "fmt": "e5m2"}, "fmt 'e5m2' is not supported"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, "weight_block_size must be two positive integers"),
        (compressed(INT8, TOKENS, "marlin-24"), "format 'marlin-24' is not supported; supported: 'int-quantized'"),
        (compressed(INT8, TOKENS | {"dynamic": False}), "input_activations: dynamic False is not supported"),
        (compressed(INT8, TOKENS | {"strategy": "tensor"}), "input_activations: strategy 'tensor' is not supported"),
        (compressed(INT8 | {"symmetric": False}, TOKENS), "weights: symmetric False is not supported"),
        (compressed(INT8, TOKENS) | {"config_groups": {}}, "config_groups must hold exactly one group"),
        (compressed(INT8, TOKENS) | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config"),
        ("gptq", "quantization_config must be an object"),
    ],
)
def test_an_unsupported_format_is_refused_with_what_is_supported(section: Any, words: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        read_quantization(section, "config.json")
    text = str(refusal.value)
    assert text.startswith("config.json: quantization_config")
    assert words in text
    if "quant_method" in text:
        assert text.endswith(", ".join(SUPPORTED))


def quantised_model(directory: Path, **changes: object) -> tuple[Path, ModelShape]:
    """A directory with the shape of a 3 B parameter GPTQ model: configuration, tokenizer, and a header of names."""
    config = json.loads((DEMO_DIRECTORY / "config.json").read_text()) | {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 48,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "max_position_embeddings": 4096,
        "dtype": "bfloat16",
        "quantization_config": GPTQ | changes,
    }
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer.json").write_bytes((DEMO_DIRECTORY / "tokenizer.json").read_bytes())
    shape = model_shape(config)
    names = [f"{each.name}.{part}" for each in linear_modules(shape) for part in ("qweight", "scales")]
    tensors = [*names, *other_tensors(shape)]
    header = json.dumps({name: {"shape": [0], "data_offsets": [0, 0]} for name in tensors}).encode()
    (directory / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    return directory, shape


@pytest.mark.parametrize(
    ("seats", "free", "keeps", "words"),
    [
        (8, 64 * GIB, True, "int4 weights = packed, 1.35 GiB"),
        (128, 64 * GIB, False, "int4 weights = expanded when loaded, 5.00 GiB instead of 1.35"),
        (128, 8 * GIB, True, "expanded they would take 5.00 GiB"),
    ],
)
def test_int4_weights_are_expanded_only_for_many_sequences_and_where_they_fit(
    seats: int, free: int, keeps: bool, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.engine.kernels.native", lambda: None)  # torch: a tied head takes a second copy
    monkeypatch.setattr("headrace.engine.machine.has_avx512", lambda: True)
    model, _ = quantised_model(tmp_path)
    arguments = EngineArgs(model=str(model), max_num_seqs=seats, quantization="gptq_marlin")
    config, reasons = resolve(arguments, environ={}, free_memory_bytes=free, native_bf16=True)
    assert config.int4 == (PACKED if keeps else EXPANDED)
    assert "quantization = gptq int4, groups of 128, inputs in activation order: config.json" in reasons
    assert any(words in reason for reason in reasons), reasons


def test_torchs_packed_kernel_is_not_chosen_for_speed_without_avx512(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.engine.kernels.native", lambda: None)
    monkeypatch.setattr("headrace.engine.machine.has_avx512", lambda: False)
    model, _ = quantised_model(tmp_path)
    few = EngineArgs(model=str(model), max_num_seqs=1)
    config, reasons = resolve(few, environ={}, free_memory_bytes=64 * GIB, native_bf16=True)
    assert config.int4 == EXPANDED
    assert any("slow without AVX-512" in reason for reason in reasons)
    assert resolve(few, environ={}, free_memory_bytes=8 * GIB, native_bf16=True)[0].int4 == PACKED


@pytest.mark.parametrize(("has_native", "group", "unfit"), [(False, 16, 48 * 7), (False, 128, 0), (True, 16, 0)])
def test_modules_that_a_packed_kernel_cannot_hold_are_counted(
    has_native: bool, group: int, unfit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's kernel has no groups of 16: what was to stay packed is expanded all the same, and told."""
    monkeypatch.setattr("headrace.engine.kernels.native", lambda: object() if has_native else None)
    monkeypatch.setattr("headrace.engine.machine.has_avx512", lambda: True)
    model, _ = quantised_model(tmp_path, group_size=group)
    few = EngineArgs(model=str(model), max_num_seqs=1)
    _, reasons = resolve(few, environ={}, free_memory_bytes=64 * GIB, native_bf16=True)
    told = [reason for reason in reasons if reason.startswith("int4 weights of ")]
    line = f"int4 weights of {unfit} modules = expanded when loaded: their sizes do not fit that kernel"
    assert told == ([line] if unfit else [])


def test_with_native_kernels_int4_weights_stay_packed_and_tokens_become_int8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.engine.kernels.native", lambda: object())
    model, _ = quantised_model(tmp_path)
    arguments = EngineArgs(model=str(model), max_num_seqs=128)
    config, reasons = resolve(arguments, environ={}, free_memory_bytes=64 * GIB, native_bf16=True)
    assert config.int4 == W4A8
    (line,) = [reason for reason in reasons if reason.startswith("int4 weights")]
    assert "multiplied by int8 tokens (W4A8)" in line and "VLLM_CPU_INT4_W4A8=0" in line
    exact = {"VLLM_CPU_INT4_W4A8": "0"}  # as vLLM has it
    config, _ = resolve(arguments, environ=exact, free_memory_bytes=64 * GIB, native_bf16=True)
    assert config.int4 == EXPANDED
    with pytest.raises(ConfigError, match="VLLM_CPU_INT4_W4A8=yes must be 0 or 1"):
        resolve(arguments, environ={"VLLM_CPU_INT4_W4A8": "yes"}, free_memory_bytes=64 * GIB, native_bf16=True)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"quantization": "awq"}, "the model config (gptq) does not match the quantization method"),
        ({"load_format": "dummy"}, "--load-format dummy: random weights are not quantised"),
    ],
)
def test_what_contradicts_the_checkpoint_is_refused(given: dict[str, str], words: str, tmp_path: Path) -> None:
    model, _ = quantised_model(tmp_path)
    with pytest.raises(ConfigError) as refusal:
        resolve(EngineArgs(model=str(model), **given), environ={}, free_memory_bytes=64 * GIB)
    assert words in str(refusal.value)
