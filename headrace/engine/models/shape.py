"""A model's dimensions, read from its config.json.  What is not supported is refused here, by name."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.engine.models.rope import RopeScaling, longest_context, read_rope
from headrace.engine.quant.config import Quantization, read_quantization, refuse_foreign_quantization
from headrace.errors import ConfigError
from headrace.sizing.config_values import positive_float, positive_int


@dataclass(frozen=True, slots=True)
class ExpertNames:
    """Where a family keeps its experts: names of modules inside a layer, `{}` is the expert's number."""

    router: str
    gate: str
    up: str
    down: str


_QWEN_EXPERTS = ExpertNames(
    router="mlp.gate",
    gate="mlp.experts.{}.gate_proj",
    up="mlp.experts.{}.up_proj",
    down="mlp.experts.{}.down_proj",
)
_MIXTRAL_EXPERTS = ExpertNames(
    router="block_sparse_moe.gate",
    gate="block_sparse_moe.experts.{}.w1",
    up="block_sparse_moe.experts.{}.w3",
    down="block_sparse_moe.experts.{}.w2",
)


@dataclass(frozen=True, slots=True)
class Architecture:
    """What sets one family apart from the others (reference: transformers' modelling code).

    qkv_bias               biases on q, k and v always; with `reads_attention_bias` the configuration decides, and for
                           the output projection as well
    window_needs_switch    `sliding_window` counts only with `use_sliding_window`; None: the family has no window
    default_head_dim       where config.json is silent; None: hidden_size / num_attention_heads
    experts                names in a mixture-of-experts layer; None: the family has none
    """

    qkv_bias: bool = False
    reads_attention_bias: bool = False
    reads_mlp_bias: bool = False
    qk_norm: bool = False
    window_needs_switch: bool | None = None
    default_head_dim: int | None = None
    experts: ExpertNames | None = None


ARCHITECTURES = {
    "LlamaForCausalLM": Architecture(reads_attention_bias=True, reads_mlp_bias=True),
    "MistralForCausalLM": Architecture(window_needs_switch=False),
    "Qwen2ForCausalLM": Architecture(qkv_bias=True, window_needs_switch=True),
    "Qwen3ForCausalLM": Architecture(
        reads_attention_bias=True, qk_norm=True, window_needs_switch=True, default_head_dim=128
    ),
    "Qwen3MoeForCausalLM": Architecture(
        reads_attention_bias=True, qk_norm=True, window_needs_switch=True, experts=_QWEN_EXPERTS
    ),
    "MixtralForCausalLM": Architecture(window_needs_switch=False, experts=_MIXTRAL_EXPERTS),
}


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts: each token goes to the `per_token` best of `count` gated MLPs of `intermediate_size`.

    normalize_weights  the chosen experts' weights are scaled to a sum of 1
    dense_layers       layers that have one MLP of the model's own intermediate_size instead
    """

    names: ExpertNames
    count: int
    per_token: int
    intermediate_size: int
    normalize_weights: bool
    dense_layers: frozenset[int]


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
    experts: Experts | None = None
    quantization: Quantization | None = None

    def experts_of(self, layer: int) -> Experts | None:
        """The experts of that layer, None when it has one MLP."""
        return None if self.experts is None or layer in self.experts.dense_layers else self.experts

    @property
    def kv_values_per_token(self) -> int:
        """Numbers (not bytes) that one token keeps in the KV cache, all layers together."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim


def read_model_shape(model_dir: Path) -> ModelShape:
    """Read `model_dir`/config.json.  ConfigError names the key that is missing or the feature that is not supported."""
    # Older tools declare the format beside config.json; its weights would fail later, and say less.
    refuse_foreign_quantization(model_dir)
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
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        raise ConfigError(f"{source}: hidden_act {activation!r} is not supported; accepted: 'silu'")
    if config.get("partial_rotary_factor", 1.0) != 1.0:
        raise ConfigError(f"{source}: partial_rotary_factor other than 1 is not supported")

    heads = positive_int(config, "num_attention_heads", source)
    kv_heads = positive_int(config, "num_key_value_heads", source, default=heads)
    hidden = positive_int(config, "hidden_size", source)
    if heads % kv_heads:
        raise ConfigError(f"{source}: num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
    head_dim = positive_int(config, "head_dim", source, default=family.default_head_dim or hidden // heads)
    if head_dim % 2:
        raise ConfigError(f"{source}: head_dim {head_dim} is odd, which rotary positions cannot use")

    theta, scaling = read_rope(config, source)
    num_layers = positive_int(config, "num_hidden_layers", source)
    has_declared_bias = family.reads_attention_bias and bool(config.get("attention_bias", False))
    return ModelShape(
        architecture=name,
        vocab_size=positive_int(config, "vocab_size", source),
        hidden_size=hidden,
        intermediate_size=positive_int(config, "intermediate_size", source),
        num_layers=num_layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=longest_context(config, scaling, source),
        rms_norm_eps=positive_float(config, "rms_norm_eps", source),
        rope_theta=theta,
        rope_scaling=scaling,
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=family.qkv_bias or has_declared_bias,
        output_bias=has_declared_bias,
        mlp_bias=family.reads_mlp_bias and bool(config.get("mlp_bias", False)),
        qk_norm=family.qk_norm,
        sliding_window=_sliding_window(config, family),
        experts=_experts(config, family.experts, num_layers, source) if family.experts else None,
        quantization=read_quantization(config.get("quantization_config"), source),
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


def _experts(config: dict[str, Any], names: ExpertNames, num_layers: int, source: str) -> Experts:
    is_mixtral = names is _MIXTRAL_EXPERTS
    count_key = "num_experts" if "num_experts" in config else "num_local_experts"
    count = positive_int(config, count_key, source)
    per_token = positive_int(config, "num_experts_per_tok", source)
    if per_token > count:
        raise ConfigError(f"{source}: num_experts_per_tok {per_token} is more than the {count} experts there are")
    step = positive_int(config, "decoder_sparse_step", source, default=1)
    mlp_only = config.get("mlp_only_layers") or []
    if not isinstance(mlp_only, list):
        raise ConfigError(f"{source}: mlp_only_layers must be a list of layer numbers, not {mlp_only!r}")
    return Experts(
        names=names,
        count=count,
        per_token=per_token,
        intermediate_size=positive_int(config, "intermediate_size" if is_mixtral else "moe_intermediate_size", source),
        normalize_weights=is_mixtral or bool(config.get("norm_topk_prob", False)),
        dense_layers=frozenset(layer for layer in range(num_layers) if layer in mlp_only or (layer + 1) % step),
    )


def _sliding_window(config: dict[str, Any], family: Architecture) -> int | None:
    window = config.get("sliding_window")
    if not isinstance(window, int) or family.window_needs_switch is None:
        return None
    is_on = not family.window_needs_switch or bool(config.get("use_sliding_window", False))
    return window if is_on else None
