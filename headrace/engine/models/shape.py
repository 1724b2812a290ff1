"""A model's dimensions, read from its config.json.  What is not supported is refused here, by name."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.engine.models.rope import RopeScaling, longest_context, read_local_rope, read_rope
from headrace.engine.quant.config import Quantization, read_quantization, refuse_foreign_quantization
from headrace.errors import ConfigError
from headrace.sizing.config_values import positive_float, positive_int
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
    full_every             without `layer_types`, every so manieth layer sees everything; 0: `max_window_layers` says
    experts                names in a mixture-of-experts layer; None: the family has none
    is_gemma               norms are stored as differences from 1; embeddings are scaled; GELU; a query scale of the
                           configuration's own
    softcaps               of scores and of logits, where the configuration is silent; 0: none
    local_theta            layers with a window rotate with this theta; None: with that of the others
    """

    window_needs_switch: bool | None = None
    full_every: int = 0
    experts: ExpertNames | None = None
    is_gemma: bool = False
    softcaps: tuple[float, float] = (0.0, 0.0)
    local_theta: float | None = None


ARCHITECTURES = {
    "LlamaForCausalLM": Architecture(),
    "MistralForCausalLM": Architecture(window_needs_switch=False),
    "Qwen2ForCausalLM": Architecture(window_needs_switch=True),
    "Qwen3ForCausalLM": Architecture(window_needs_switch=True),
    "Qwen3MoeForCausalLM": Architecture(window_needs_switch=True, experts=_QWEN_EXPERTS),
    "MixtralForCausalLM": Architecture(window_needs_switch=False, experts=_MIXTRAL_EXPERTS),
    "Gemma2ForCausalLM": Architecture(window_needs_switch=False, full_every=2, is_gemma=True, softcaps=(50.0, 30.0)),
    "Gemma3ForCausalLM": Architecture(window_needs_switch=False, full_every=6, is_gemma=True, local_theta=10_000.0),
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
    """Dimensions of a decoder-only transformer with rotary positions, grouped-query attention and a gated MLP.

    windows          positions that each layer sees, the row's own included; 0: all
    local_rope       theta and scaling of layers with a window; None: as the others
    query_scale      what queries are multiplied by
    softcap          scores s become softcap * tanh(s / softcap); 0: they stay.  `final_softcap` is that of logits
    activation       of the MLP's gate: "silu" or "gelu_tanh"
    norm_offset      what is added to the norms' weights: 1 where they are stored as differences from it
    post_norms       attention and MLP are normed before they are added, too
    """

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
    windows: tuple[int, ...]
    query_scale: float
    local_rope: tuple[float, RopeScaling] | None = None
    softcap: float = 0.0
    final_softcap: float = 0.0
    activation: str = "silu"
    norm_offset: float = 0.0
    post_norms: bool = False
    embedding_scale: float = 1.0
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
    activation = _activation(config, family, source)
    if config.get("use_bidirectional_attention"):
        raise ConfigError(f"{source}: use_bidirectional_attention is not supported: a decoder sees the past alone")
    if config.get("partial_rotary_factor", 1.0) != 1.0:
        raise ConfigError(f"{source}: partial_rotary_factor other than 1 is not supported")

    plain = plain_shape({**config, "architectures": [name]}, source)
    if plain.head_dim % 2:
        raise ConfigError(f"{source}: head_dim {plain.head_dim} is odd, which rotary positions cannot use")
    theta, scaling = read_rope(config, source, default_theta=10_000.0 if family.local_theta is None else 1_000_000.0)
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
        windows=_windows(config, family, plain.num_layers, source),
        query_scale=_query_width(config, family, plain.head_dim, source) ** -0.5,
        local_rope=None if family.local_theta is None else read_local_rope(config, family.local_theta, source),
        softcap=_softcap(config, "attn_logit_softcapping", family.softcaps[0], source),
        final_softcap=_softcap(config, "final_logit_softcapping", family.softcaps[1], source),
        activation=activation,
        norm_offset=1.0 if family.is_gemma else 0.0,
        post_norms=plain.post_norms,
        embedding_scale=plain.hidden_size**0.5 if family.is_gemma else 1.0,
        experts=_experts(config, plain.experts, family.experts),
        quantization=read_quantization(config.get("quantization_config"), source),
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


def _windows(config: dict[str, Any], family: Architecture, num_layers: int, source: str) -> tuple[int, ...]:
    """How many positions each layer sees, 0 for all.  `layer_types` decides where there are any (transformers 4.53)."""
    window = config.get("sliding_window")
    is_on = family.window_needs_switch is False or (
        family.window_needs_switch is True and bool(config.get("use_sliding_window", False))
    )
    if window is None or not is_on:
        return (0,) * num_layers
    window = positive_int(config, "sliding_window", source)
    types = config.get("layer_types")
    if types is not None:
        if not isinstance(types, list) or len(types) != num_layers:
            raise ConfigError(f"{source}: layer_types must be a list of {num_layers} names, not {types!r}")
        unknown = sorted({str(each) for each in types} - {"sliding_attention", "full_attention"})
        if unknown:
            raise ConfigError(
                f"{source}: layer type {unknown[0]} is not supported; accepted: sliding_attention, full_attention"
            )
        return tuple(window if each == "sliding_attention" else 0 for each in types)
    if family.full_every:
        every = positive_int(config, "sliding_window_pattern", source, default=family.full_every)
        return tuple(window if (layer + 1) % every else 0 for layer in range(num_layers))
    if family.window_needs_switch:
        first = config.get("max_window_layers", 28)
        return tuple(window if layer >= first else 0 for layer in range(num_layers))
    return (window,) * num_layers


def _activation(config: dict[str, Any], family: Architecture, source: str) -> str:
    if not family.is_gemma:
        name = config.get("hidden_act", "silu")
        if name != "silu":
            raise ConfigError(f"{source}: hidden_act {name!r} is not supported; accepted: 'silu'")
        return "silu"
    # Early files say "gelu" in hidden_act and mean the tanh form; hidden_activation decides, as in transformers.
    name = config.get("hidden_activation") or "gelu_pytorch_tanh"
    if name != "gelu_pytorch_tanh":
        raise ConfigError(f"{source}: hidden_activation {name!r} is not supported; accepted: 'gelu_pytorch_tanh'")
    return "gelu_tanh"


def _query_width(config: dict[str, Any], family: Architecture, head_dim: int, source: str) -> float:
    """Queries are divided by the root of this."""
    return positive_float(config, "query_pre_attn_scalar", source, 256.0) if family.is_gemma else float(head_dim)


def _softcap(config: dict[str, Any], key: str, default: float, source: str) -> float:
    """A cap that is null is off, one that is missing is the family's own; families without caps do not read the key."""
    if not default or (key in config and config[key] is None):
        return 0.0
    return positive_float(config, key, source, default)
