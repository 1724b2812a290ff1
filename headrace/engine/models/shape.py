"""A model's dimensions, read from its config.json.  What is not supported is refused here, by name."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.errors import ConfigError

ROPE_TYPES = ("default", "linear", "llama3")


@dataclass(frozen=True, slots=True)
class Architecture:
    """What sets one family apart from the others (reference: transformers' modelling code).

    qkv_bias               biases on q, k and v always; with `reads_attention_bias` the configuration decides, and for
                           the output projection as well
    window_needs_switch    `sliding_window` counts only with `use_sliding_window`; None: the family has no window
    default_head_dim       where config.json is silent; None: hidden_size / num_attention_heads
    """

    qkv_bias: bool = False
    reads_attention_bias: bool = False
    reads_mlp_bias: bool = False
    qk_norm: bool = False
    window_needs_switch: bool | None = None
    default_head_dim: int | None = None


ARCHITECTURES = {
    "LlamaForCausalLM": Architecture(reads_attention_bias=True, reads_mlp_bias=True),
    "MistralForCausalLM": Architecture(window_needs_switch=False),
    "Qwen2ForCausalLM": Architecture(qkv_bias=True, window_needs_switch=True),
    "Qwen3ForCausalLM": Architecture(
        reads_attention_bias=True, qk_norm=True, window_needs_switch=True, default_head_dim=128
    ),
}


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched: "default" not at all, "linear" by `factor`, "llama3" by wavelength
    (low frequencies by `factor`, high ones not, a ramp between; source: Llama 3.1's reference code)."""

    rope_type: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Dimensions of a decoder-only transformer with rotary positions, grouped-query attention and a gated MLP."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling
    tie_word_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    sliding_window: int | None

    @property
    def kv_values_per_token(self) -> int:
        """Numbers (not bytes) that one token keeps in the KV cache, all layers together."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim


def read_model_shape(model_dir: Path) -> ModelShape:
    """Read `model_dir`/config.json.  ConfigError names the key that is missing or the feature that is not supported."""
    path = model_dir / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{model_dir} has no config.json; give the directory of a Hugging Face model") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None
    if not isinstance(config, dict):
        raise ConfigError(f"{path} does not hold a JSON object")
    return model_shape(config, source=str(path))


def model_shape(config: dict[str, Any], source: str = "config.json") -> ModelShape:
    """The shape that a Hugging Face configuration declares (`source` is the file's name for messages)."""
    name = _architecture(config, source)
    family = ARCHITECTURES[name]
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "unknown")
        raise ConfigError(f"{source}: quantization_config ({method}) is not supported; use a bf16, fp16 or fp32 model")
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        raise ConfigError(f"{source}: hidden_act {activation!r} is not supported; accepted: 'silu'")
    if config.get("partial_rotary_factor", 1.0) != 1.0:
        raise ConfigError(f"{source}: partial_rotary_factor other than 1 is not supported")

    heads = _positive_int(config, "num_attention_heads", source)
    kv_heads = _positive_int(config, "num_key_value_heads", source, default=heads)
    hidden = _positive_int(config, "hidden_size", source)
    if heads % kv_heads:
        raise ConfigError(f"{source}: num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
    head_dim = _positive_int(config, "head_dim", source, default=family.default_head_dim or hidden // heads)
    if head_dim % 2:
        raise ConfigError(f"{source}: head_dim {head_dim} is odd, which rotary positions cannot use")

    theta, scaling = _rope(config, source)
    has_declared_bias = family.reads_attention_bias and bool(config.get("attention_bias", False))
    return ModelShape(
        architecture=name,
        vocab_size=_positive_int(config, "vocab_size", source),
        hidden_size=hidden,
        intermediate_size=_positive_int(config, "intermediate_size", source),
        num_layers=_positive_int(config, "num_hidden_layers", source),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=_positive_int(config, "max_position_embeddings", source),
        rms_norm_eps=_positive_float(config, "rms_norm_eps", source),
        rope_theta=theta,
        rope_scaling=scaling,
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=family.qkv_bias or has_declared_bias,
        output_bias=has_declared_bias,
        mlp_bias=family.reads_mlp_bias and bool(config.get("mlp_bias", False)),
        qk_norm=family.qk_norm,
        sliding_window=_sliding_window(config, family),
    )


def check_attention_window(shape: ModelShape, max_model_len: int) -> None:
    """Refuse a sliding window that would matter: with contexts no longer than the window it changes nothing."""
    if shape.sliding_window is not None and shape.sliding_window < max_model_len:
        raise ConfigError(
            f"sliding_window {shape.sliding_window} is not supported with max_model_len {max_model_len}; "
            f"accepted: --max-model-len {shape.sliding_window} or less"
        )


def _architecture(config: dict[str, Any], source: str) -> str:
    names = config.get("architectures")
    if not isinstance(names, list) or not names:
        raise ConfigError(f"{source}: key 'architectures' is missing; supported: {', '.join(ARCHITECTURES)}")
    for name in names:
        if name in ARCHITECTURES:
            return str(name)
    raise ConfigError(f"{source}: architecture {names[0]} is not supported; supported: {', '.join(ARCHITECTURES)}")


def _positive_int(config: dict[str, Any], key: str, source: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise ConfigError(f"{source}: key {key!r} is missing")
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{source}: {key} must be a positive integer, not {value!r}")
    return value


def _positive_float(config: dict[str, Any], key: str, source: str, default: float | None = None) -> float:
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise ConfigError(f"{source}: key {key!r} is missing")
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ConfigError(f"{source}: {key} must be a positive number, not {value!r}")
    return float(value)


def _rope(config: dict[str, Any], source: str) -> tuple[float, RopeScaling]:
    """Theta and scaling, laid out as by transformers 5 (`rope_parameters`) or before (`rope_theta`, `rope_scaling`)."""
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(parameters, dict):
        raise ConfigError(f"{source}: rope_scaling must be an object or null")
    theta = _positive_float(parameters, "rope_theta", source, _positive_float(config, "rope_theta", source, 10000.0))
    rope_type = parameters.get("rope_type") or parameters.get("type") or "default"
    if rope_type not in ROPE_TYPES:
        raise ConfigError(
            f"{source}: rope scaling type {rope_type!r} is not supported; accepted: {', '.join(ROPE_TYPES)}"
        )
    if rope_type == "default":
        return theta, RopeScaling()
    factor = _positive_float(parameters, "factor", source)
    if rope_type == "linear":
        return theta, RopeScaling(rope_type="linear", factor=factor)
    return theta, RopeScaling(
        rope_type="llama3",
        factor=factor,
        low_freq_factor=_positive_float(parameters, "low_freq_factor", source),
        high_freq_factor=_positive_float(parameters, "high_freq_factor", source),
        original_max_position_embeddings=_positive_int(parameters, "original_max_position_embeddings", source),
    )


def _sliding_window(config: dict[str, Any], family: Architecture) -> int | None:
    window = config.get("sliding_window")
    if not isinstance(window, int) or family.window_needs_switch is None:
        return None
    is_on = not family.window_needs_switch or bool(config.get("use_sliding_window", False))
    return window if is_on else None
