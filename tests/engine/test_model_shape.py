"""config.json becomes a shape, or one sentence that names the key or the feature."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from headrace.engine.demo import DEMO_DIRECTORY
from headrace.engine.models.layers import Rotary
from headrace.engine.models.shape import ARCHITECTURES, model_shape, read_model_shape
from headrace.engine.models.tensors import expected_tensors
from headrace.errors import ConfigError

BASE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
}


def test_defaults_are_those_of_transformers() -> None:
    shape = model_shape(BASE)
    assert (shape.num_kv_heads, shape.head_dim, shape.rope_theta) == (4, 16, 10000.0)
    assert not shape.tie_word_embeddings
    assert model_shape(BASE | {"architectures": ["Qwen3ForCausalLM"]}).head_dim == 128


@pytest.mark.parametrize("key", ["architectures", "vocab_size", "num_hidden_layers", "rms_norm_eps"])
def test_a_missing_key_is_named(key: str) -> None:
    config = {name: value for name, value in BASE.items() if name != key}
    with pytest.raises(ConfigError, match=f"'{key}' is missing"):
        model_shape(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel is not supported; supported: LlamaForCausalLM"),
        ({"architectures": ["MixtralForCausalLM"]}, "'num_local_experts' is missing"),
        ({"rope_scaling": {"type": "yarn"}}, "'factor' is missing"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "'longrope' is not supported"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "'low_freq_factor' is missing"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"num_key_value_heads": 3}, "not a multiple"),
        ({"num_attention_heads": 0}, "num_attention_heads must be a positive integer"),
        ({"hidden_size": "64"}, "hidden_size must be a positive integer"),
        ({"head_dim": 15}, "head_dim 15 is odd"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model_shape(BASE | change)


def windows(architecture: str, **keys: object) -> tuple[int, ...]:
    layers = {"num_hidden_layers": 4, "sliding_window": 64}
    return model_shape(BASE | layers | {"architectures": [architecture]} | keys).windows


def test_which_layers_have_a_window() -> None:
    """As transformers decides: by layer_types where a file has them, else by the family's own habit."""
    assert windows("LlamaForCausalLM") == (0, 0, 0, 0)
    assert windows("MistralForCausalLM") == (64, 64, 64, 64)
    assert windows("MistralForCausalLM", sliding_window=None) == (0, 0, 0, 0)
    assert windows("Qwen2ForCausalLM", max_window_layers=2) == (0, 0, 0, 0), "declared, but not switched on"
    assert windows("Qwen2ForCausalLM", max_window_layers=2, use_sliding_window=True) == (0, 0, 64, 64)
    assert windows("Gemma2ForCausalLM") == (64, 0, 64, 0)
    assert windows("Gemma3ForCausalLM", sliding_window_pattern=3) == (64, 64, 0, 64)
    types = ["full_attention", "sliding_attention"] * 2
    assert windows("Gemma3ForCausalLM", layer_types=types) == (0, 64, 0, 64)
    with pytest.raises(ConfigError, match="layer type chunked_attention is not supported"):
        windows("Gemma3ForCausalLM", layer_types=["chunked_attention"] * 4)


def test_soft_caps_of_gemma_are_on_unless_they_are_null() -> None:
    gemma = {"architectures": ["Gemma2ForCausalLM"]}
    shape = model_shape(BASE | gemma)
    assert (shape.softcap, shape.final_softcap, shape.query_scale) == (50.0, 30.0, 1 / 16)
    assert shape.tie_word_embeddings or "tie_word_embeddings" in BASE
    off = {"attn_logit_softcapping": None, "final_logit_softcapping": None}
    assert model_shape(BASE | gemma | off).softcap == 0.0
    with pytest.raises(ConfigError, match="hidden_activation 'relu' is not supported"):
        model_shape(BASE | gemma | {"hidden_activation": "relu"})


def test_yarn_declares_the_original_context_and_dynamic_scaling_ends_at_it() -> None:
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
    assert model_shape(BASE | {"rope_scaling": scaling}).max_position_embeddings == 4096
    dynamic = model_shape(BASE | {"rope_scaling": {"type": "dynamic", "factor": 4.0}})
    assert dynamic.max_position_embeddings == 2048
    Rotary(dynamic.head_dim, dynamic.rope_theta, dynamic.rope_scaling, 2048, torch.float32)
    with pytest.raises(ConfigError, match="--max-model-len 2048 or less"):
        Rotary(dynamic.head_dim, dynamic.rope_theta, dynamic.rope_scaling, 2049, torch.float32)


def test_experts_are_where_the_family_keeps_them() -> None:
    def names(architecture: str, **extra: Any) -> set[str]:
        return set(expected_tensors(model_shape(BASE | {"architectures": [architecture]} | extra)))

    mixtral = names("MixtralForCausalLM", num_local_experts=2, num_experts_per_tok=1)
    assert {f"model.layers.1.block_sparse_moe.experts.1.{w}.weight" for w in ("w1", "w2", "w3")} <= mixtral
    sizes = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 32}
    qwen = names("Qwen3MoeForCausalLM", **sizes, mlp_only_layers=[0])
    assert "model.layers.0.mlp.up_proj.weight" in qwen
    assert {"model.layers.1.mlp.gate.weight", "model.layers.1.mlp.experts.0.down_proj.weight"} <= qwen
    with pytest.raises(ConfigError, match="num_experts_per_tok 3 is more than the 2 experts"):
        names("Qwen3MoeForCausalLM", **sizes | {"num_experts_per_tok": 3})


def test_biases_and_norms_follow_the_architecture() -> None:
    def names(architecture: str, **extra: Any) -> set[str]:
        return set(expected_tensors(model_shape(BASE | {"architectures": [architecture]} | extra)))

    layer = "model.layers.1.self_attn."
    assert layer + "q_proj.bias" in names("Qwen2ForCausalLM")
    assert layer + "o_proj.bias" not in names("Qwen2ForCausalLM")
    assert layer + "k_norm.weight" in names("Qwen3ForCausalLM")
    assert not [name for name in names("LlamaForCausalLM") if name.endswith("bias") or "_norm" in name]
    assert {layer + "o_proj.bias", "model.layers.0.mlp.up_proj.bias"} <= names(
        "LlamaForCausalLM", attention_bias=True, mlp_bias=True
    )


@pytest.mark.parametrize(
    ("content", "message"), [(None, "no config.json"), ("[]", "JSON object"), ("{", "cannot read")]
)
def test_an_unreadable_file_is_named(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_model_shape(tmp_path)


def test_the_demonstration_model_is_one_we_support() -> None:
    shape = read_model_shape(DEMO_DIRECTORY)
    assert shape.architecture == "Qwen3ForCausalLM"
    assert shape.vocab_size == 4096
    assert shape.tie_word_embeddings


def test_real_configurations_are_read_or_refused_by_name(shared_data: Path) -> None:
    """Fifty public models: a shape for those we support, one sentence for the others, never another exception."""
    read, refused = [], []
    for path in sorted((shared_data / "model-configs").glob("*/config.json")):
        try:
            shape = read_model_shape(path.parent)
            assert expected_tensors(shape)
            read.append(shape.architecture)
        except ConfigError:
            refused.append(path.parent.name)
    assert len(read) >= 12
    of_others = {"Gemma2ForCausalLM", "Gemma3ForCausalLM"}  # the collection has none
    assert set(read) == set(ARCHITECTURES) - of_others
    assert len(refused) >= 10


def test_real_quantised_configurations_are_read_or_refused_with_the_list(shared_data: Path) -> None:
    configs = shared_data / "model-configs"
    assert str(read_model_shape(configs / "Qwen--Qwen3-32B-FP8").quantization) == "fp8 fp8, blocks of 128x128"
    experts = read_model_shape(configs / "Qwen--Qwen3-235B-A22B-FP8")
    assert experts.experts is not None
    assert (experts.experts.count, experts.experts.per_token, experts.quantization is None) == (128, 8, False)
    with pytest.raises(ConfigError, match=r"hf_quant_config\.json \(modelopt FP8\).*supported: gptq"):
        read_model_shape(configs / "nvidia--Llama-3.1-70B-Instruct-FP8")
