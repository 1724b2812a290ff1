"""Plain decoders, as numbers read from a config.json.  A key that is missing is an error.

The engine reads its models through this as well; families that it does not run are in `architectures`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from headrace.errors import ConfigError
from headrace.sizing.config_values import positive_int
from headrace.sizing.mixers import experts as experts_part
from headrace.sizing.mixers import grouped_attention, mlp
from headrace.sizing.modules import Layer, Module, outer_modules, vector


class ExpertsLike(Protocol):
    """A mixture of experts: each token uses `per_token` of `count` gated MLPs; `dense_layers` have one MLP instead."""

    @property
    def count(self) -> int: ...
    @property
    def per_token(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def dense_layers(self) -> frozenset[int]: ...


class Dimensions(Protocol):
    """The numbers that a plain decoder is described by; the engine's own shape has them as well."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def tie_word_embeddings(self) -> bool: ...
    @property
    def qkv_bias(self) -> bool: ...
    @property
    def output_bias(self) -> bool: ...
    @property
    def mlp_bias(self) -> bool: ...
    @property
    def qk_norm(self) -> bool: ...
    @property
    def post_norms(self) -> bool: ...
    @property
    def experts(self) -> ExpertsLike | None: ...


@dataclass(frozen=True, slots=True)
class Experts:
    """See `ExpertsLike`; `intermediate_size` is that of one expert."""

    count: int
    per_token: int
    intermediate_size: int
    dense_layers: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder with grouped-query attention and gated MLPs, or experts in their place."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    tie_word_embeddings: bool
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    experts: Experts | None = None
    post_norms: bool = False

    @property
    def layers(self) -> tuple[Layer, ...]:
        return decoder_layers(self)

    @property
    def outer(self) -> tuple[Module, ...]:
        return outer_modules(self.vocab_size, self.hidden_size, self.tie_word_embeddings)


@dataclass(frozen=True, slots=True)
class _Family:
    """What transformers' code for a family decides, where config.json does not.

    attention_bias   the configuration's own switch counts, for the output projection too
    head_dim         where config.json is silent; None: hidden_size / num_attention_heads
    output_bias      the key that alone decides on the output projection's bias; None: `attention_bias` does
    expert_size      the key of one expert's size; None: no experts
    post_norms       attention and MLP are normed before they are added, too
    is_tied          the head is the embedding unless config.json says otherwise
    """

    qkv_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    head_dim: int | None = None
    output_bias: str | None = None
    expert_count: str | None = None
    expert_size: str | None = None
    post_norms: bool = False
    is_tied: bool = False


FAMILIES = {
    "LlamaForCausalLM": _Family(attention_bias=True, mlp_bias=True),
    "MistralForCausalLM": _Family(),
    "Qwen2ForCausalLM": _Family(qkv_bias=True),
    "Qwen3ForCausalLM": _Family(attention_bias=True, qk_norm=True, head_dim=128),
    "Qwen3MoeForCausalLM": _Family(
        attention_bias=True, qk_norm=True, expert_count="num_experts", expert_size="moe_intermediate_size"
    ),
    "MixtralForCausalLM": _Family(expert_count="num_local_experts", expert_size="intermediate_size"),
    "Gemma2ForCausalLM": _Family(attention_bias=True, head_dim=256, post_norms=True, is_tied=True),
    "Gemma3ForCausalLM": _Family(attention_bias=True, qk_norm=True, head_dim=256, post_norms=True, is_tied=True),
    "GraniteForCausalLM": _Family(attention_bias=True, mlp_bias=True),
    "SeedOssForCausalLM": _Family(attention_bias=True, mlp_bias=True, output_bias="attention_out_bias"),
}


def model_shape(config: Mapping[str, Any], source: str = "config.json") -> ModelShape:
    """The shape that a Hugging Face configuration declares.

    Raises ConfigError with the file, the key and what is accepted: for a family that is not known, and for a key that
    is missing.  A default is taken only where the family's own code has one.
    """
    names = config.get("architectures")
    known = [name for name in names if name in FAMILIES] if isinstance(names, list) else []
    if not known:
        raise ConfigError(f"{source}: architectures {names!r} are not known here; known: {', '.join(FAMILIES)}")
    family = FAMILIES[known[0]]
    heads, hidden = positive_int(config, "num_attention_heads", source), positive_int(config, "hidden_size", source)
    kv_heads = positive_int(config, "num_key_value_heads", source, default=heads)
    if heads % kv_heads:
        raise ConfigError(f"{source}: num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
    layers = positive_int(config, "num_hidden_layers", source)
    biased = family.attention_bias and bool(config.get("attention_bias", False))
    return ModelShape(
        architecture=known[0],
        vocab_size=positive_int(config, "vocab_size", source),
        hidden_size=hidden,
        intermediate_size=positive_int(config, "intermediate_size", source),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=positive_int(config, "head_dim", source, default=family.head_dim or hidden // heads),
        max_position_embeddings=positive_int(config, "max_position_embeddings", source),
        tie_word_embeddings=bool(config.get("tie_word_embeddings", family.is_tied)),
        qkv_bias=family.qkv_bias or biased,
        output_bias=biased if family.output_bias is None else bool(config.get(family.output_bias, False)),
        mlp_bias=family.mlp_bias and bool(config.get("mlp_bias", False)),
        qk_norm=family.qk_norm,
        experts=_experts(config, family, layers, source),
        post_norms=family.post_norms,
    )


def _experts(config: Mapping[str, Any], family: _Family, layers: int, source: str) -> Experts | None:
    if family.expert_count is None or family.expert_size is None:
        return None
    # transformers 5 writes every family's number under Mixtral's name.
    count_key = family.expert_count if family.expert_count in config else "num_local_experts"
    count = positive_int(config, count_key, source)
    per_token = positive_int(config, "num_experts_per_tok", source)
    if per_token > count:
        raise ConfigError(f"{source}: num_experts_per_tok {per_token} is more than the {count} experts there are")
    step = positive_int(config, "decoder_sparse_step", source, default=1)
    dense = config.get("mlp_only_layers") or []
    if not isinstance(dense, list):
        raise ConfigError(f"{source}: mlp_only_layers must be a list of layer numbers, not {dense!r}")
    return Experts(
        count=count,
        per_token=per_token,
        intermediate_size=positive_int(config, family.expert_size, source),
        dense_layers=frozenset(layer for layer in range(layers) if layer in dense or (layer + 1) % step),
    )


def decoder_layers(shape: Dimensions) -> tuple[Layer, ...]:
    """The layers that a plain decoder's numbers stand for."""
    hidden, head = shape.hidden_size, shape.head_dim
    return tuple(_layer(shape, f"layers.{index}", index, hidden, head) for index in range(shape.num_layers))


def _layer(shape: Dimensions, prefix: str, index: int, hidden: int, head: int) -> Layer:
    attention = grouped_attention(
        f"{prefix}.self_attn",
        hidden,
        shape.num_heads,
        shape.num_kv_heads,
        head,
        qkv_bias=shape.qkv_bias,
        output_bias=shape.output_bias,
        norms=(head, head) if shape.qk_norm else None,
    )
    if shape.experts is None or index in shape.experts.dense_layers:
        feed = mlp(f"{prefix}.mlp", hidden, shape.intermediate_size, bias=shape.mlp_bias)
    else:
        chosen = shape.experts
        feed = experts_part(f"{prefix}.mlp", hidden, chosen.intermediate_size, chosen.count, chosen.per_token)
    names = ["input_layernorm", "post_attention_layernorm"]
    if shape.post_norms:
        names += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    norms = [vector(f"{prefix}.{name}", hidden) for name in names]
    return Layer(
        (*attention.modules, *feed.modules, *norms),
        attention.caches,
        feed.inner,
        attention.mixed,
        attention.score_width,
    )
