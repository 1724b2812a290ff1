"""config.json becomes a shape, or one sentence that names the key or the feature."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from headrace.engine.demo import DEMO_DIRECTORY
from headrace.engine.models.decoder import expected_tensors
from headrace.engine.models.shape import check_attention_window, model_shape, read_model_shape
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
        ({"architectures": ["MixtralForCausalLM"]}, "MixtralForCausalLM is not supported; supported: LlamaForCausalLM"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "'yarn' is not supported"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "'longrope' is not supported"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "'low_freq_factor' is missing"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
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


def test_a_sliding_window_is_refused_only_where_it_matters() -> None:
    mistral = model_shape(BASE | {"architectures": ["MistralForCausalLM"], "sliding_window": 1024})
    check_attention_window(mistral, max_model_len=1024)
    with pytest.raises(ConfigError, match="sliding_window 1024 is not supported with max_model_len 1025"):
        check_attention_window(mistral, max_model_len=1025)
    declared_but_off = {"architectures": ["Qwen2ForCausalLM"], "sliding_window": 1024, "use_sliding_window": False}
    check_attention_window(model_shape(BASE | declared_but_off), max_model_len=2048)


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
    assert len(read) >= 8
    assert {"LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"} <= set(read)
    assert len(refused) >= 10
