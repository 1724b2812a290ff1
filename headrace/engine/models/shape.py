"""A model's dimensions, read from its config.json.  What is not supported is refused here, by name."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.engine.models.rope import RopeScaling, longest_context, read_rope
from headrace.engine.quant.config import Quantization, read_quantization, refuse_foreign_quantization
from headrace.errors import ConfigError
from headrace.sizing.config_values import positive_float
from headrace.sizing.model_shape import Experts as PlainExperts
from headrace.sizing.model_shape import decoder_layers
from headrace.sizing.model_shape import model_shape as plain_shape
from headrace.sizing.modules import Layer, Module, outer_modules


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
    """What the engine needs to know of a family beside its dimensions (`headrace.sizing.model_shape.FAMILIES`).

    window_needs_switch    `sliding_window` counts only with `use_sliding_window`; None: the family has no window
    experts                names in a mixture-of-experts layer; None: the family has none
    """

    window_needs_switch: bool | None = None
    experts: ExpertNames | None = None


ARCHITECTURES = {
    "LlamaForCausalLM": Architecture(),
    "MistralForCausalLM": Architecture(window_needs_switch=False),
    "Qwen2ForCausalLM": Architecture(window_needs_switch=True),
    "Qwen3ForCausalLM": Architecture(window_needs_switch=True),
    "Qwen3MoeForCausalLM": Architecture(window_needs_switch=True, experts=_QWEN_EXPERTS),
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
    def layers(self) -> tuple[Layer, ...]:
        """For `headrace.sizing`."""
        return decoder_layers(self)

    @property
    def outer(self) -> tuple[Module, ...]:
        """For `headrace.sizing`."""
        return outer_modules(self.vocab_size, self.hidden_size, self.tie_word_embeddings)

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

    plain = plain_shape({**config, "architectures": [name]}, source)
    if plain.head_dim % 2:
        raise ConfigError(f"{source}: head_dim {plain.head_dim} is odd, which rotary positions cannot use")
    theta, scaling = read_rope(config, source)
    return ModelShape(
        architecture=name,
        vocab_size=plain.vocab_size,
        hidden_size=plain.hidden_size,
        intermediate_size=plain.intermediate_size,
        num_layers=plain.num_layers,
        num_heads=plain.num_heads,
        num_kv_heads=plain.num_kv_heads,
        head_dim=plain.head_dim,
        max_position_embeddings=longest_context(config, scaling, source),
        rms_norm_eps=positive_float(config, "rms_norm_eps", source),
        rope_theta=theta,
        rope_scaling=scaling,
        tie_word_embeddings=plain.tie_word_embeddings,
        qkv_bias=plain.qkv_bias,
        output_bias=plain.output_bias,
        mlp_bias=plain.mlp_bias,
        qk_norm=plain.qk_norm,
        sliding_window=_sliding_window(config, family),
        experts=_experts(config, plain.experts, family.experts),
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


def _experts(config: dict[str, Any], plain: PlainExperts | None, names: ExpertNames | None) -> Experts | None:
    if plain is None or names is None:
        return None
    return Experts(
        names=names,
        count=plain.count,
        per_token=plain.per_token,
        intermediate_size=plain.intermediate_size,
        # Mixtral's code always scales them; the others ask the configuration.
        normalize_weights=names is _MIXTRAL_EXPERTS or bool(config.get("norm_topk_prob", False)),
        dense_layers=plain.dense_layers,
    )


def _sliding_window(config: dict[str, Any], family: Architecture) -> int | None:
    window = config.get("sliding_window")
    if not isinstance(window, int) or family.window_needs_switch is None:
        return None
    is_on = not family.window_needs_switch or bool(config.get("use_sliding_window", False))
    return window if is_on else None
