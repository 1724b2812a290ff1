"""Every family of models that can be sized: config.json -> the list of its weights and caches.

A family is one function; a key without a default in the family's own code is an error when it is missing.  Only the
language model is counted: `Model.notes` says what else a checkpoint holds (vision, draft layers).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from headrace.errors import ConfigError
from headrace.sizing import model_shape
from headrace.sizing.config_values import positive_int
from headrace.sizing.mixers import Part, experts, gated_delta, grouped_attention, latent_attention, mamba2, mlp
from headrace.sizing.modules import Cache, Layer, Module, Role, outer_modules, vector

Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Model:
    """A model as sizing sees it.

    num_heads, num_kv_heads, head_dim   as config.json says, for the formulas that are in use; 0 where it says nothing
    max_position_embeddings             None where config.json does not say
    kv_format                           a KV format of its own that the model cannot do without (DeepSeek V4)
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    layers: tuple[Layer, ...]
    outer: tuple[Module, ...]
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int | None
    notes: tuple[str, ...] = ()


def describe(config: Config, source: str = "config.json") -> Model:
    """The model that a Hugging Face configuration declares; the text part of one that sees or hears.

    Raises ConfigError for a family that is not known and for a key that is missing.
    """
    if not isinstance(config, Mapping):
        raise ConfigError(f"{source} does not hold a JSON object")
    names = config.get("architectures")
    known = [name for name in names if name in FAMILIES] if isinstance(names, list) else []
    if not known:
        raise ConfigError(f"{source}: architectures {names!r} are not known here; known: {', '.join(sorted(FAMILIES))}")
    text = config.get("text_config", config)
    if not isinstance(text, Mapping):
        raise ConfigError(f"{source}: text_config must be an object")
    if text is not config:
        # The outer object decides what it says itself; tie_word_embeddings is often there only.
        text = {
            **{key: config[key] for key in ("tie_word_embeddings", "dtype", "torch_dtype") if key in config},
            **text,
        }
        source = f"{source}: text_config"
    layers, outer = FAMILIES[known[0]](text, source)
    heads = positive_int(text, "num_attention_heads", source)
    return Model(
        architecture=known[0],
        vocab_size=positive_int(text, "vocab_size", source),
        hidden_size=positive_int(text, "hidden_size", source),
        layers=layers,
        outer=outer,
        num_heads=heads,
        num_kv_heads=max((cache.heads for layer in layers for cache in layer.caches), default=heads),
        head_dim=max((cache.key for layer in layers for cache in layer.caches), default=0),
        max_position_embeddings=text.get("max_position_embeddings"),
        notes=_notes(config, text),
    )


def _notes(config: Config, text: Config) -> tuple[str, ...]:
    found = []
    if config.get("vision_config") or config.get("audio_config"):
        found.append("vision and audio parts are not counted: only the language model is")
    elif text is not config:
        found.append("only the language model is counted")
    drafts = ("num_nextn_predict_layers", "num_mtp_modules", "mtp_num_hidden_layers")
    if any(text.get(key) for key in drafts):
        found.append("draft layers (multi-token prediction) are not counted: servers load them for speculation only")
    return tuple(found)


Built = tuple[tuple[Layer, ...], tuple[Module, ...]]


def _layer(prefix: str, hidden: int, parts: tuple[Part, ...], norms: tuple[str, ...], *more: Module) -> Layer:
    return Layer(
        (
            *(module for part in parts for module in part.modules),
            *(vector(f"{prefix}.{name}", hidden) for name in norms),
            *more,
        ),
        tuple(cache for part in parts for cache in part.caches),
        inner=max(part.inner for part in parts),
        mixed=max(part.mixed for part in parts),
        score_width=sum(part.score_width for part in parts),
        state_bytes=sum(part.state_bytes for part in parts),
    )


_TWO = ("input_layernorm", "post_attention_layernorm")


def _outer(config: Config, source: str, tied_by_default: bool = False) -> tuple[Module, ...]:
    tied = bool(config.get("tie_word_embeddings", tied_by_default))
    return outer_modules(positive_int(config, "vocab_size", source), positive_int(config, "hidden_size", source), tied)


def _plain(config: Config, source: str) -> Built:
    shape = model_shape.model_shape(config, source)
    return shape.layers, shape.outer


def _renamed(name: str) -> Callable[[Config, str], Built]:
    """A multimodal model whose text part is a plain decoder of another name."""
    return lambda config, source: _plain({**config, "architectures": [name]}, source)


class _Reader:
    """Numbers of one configuration by name; every one must be there unless a default is given."""

    def __init__(self, config: Config, source: str) -> None:
        self.config, self.source = config, source

    def __call__(self, key: str, default: int | None = None) -> int:
        return positive_int(self.config, key, self.source, default)

    def kinds(self, key: str, count: int, default: list[Any] | None = None) -> list[Any]:
        """A list with one entry for each layer (longer lists also tell of draft layers)."""
        value = self.config.get(key, default)
        if not isinstance(value, list) or len(value) < count:
            raise ConfigError(f"{self.source}: {key} must list the kinds of all {count} layers")
        return value[:count]

    def zero_or(self, key: str) -> int:
        """A number that may be absent, null or 0, which mean the same."""
        return 0 if not self.config.get(key) else self(key)


def _minimax(config: Config, source: str) -> Built:
    read = _Reader(config, source)
    hidden, heads, kv = read("hidden_size"), read("num_attention_heads"), read("num_key_value_heads")
    head = read("head_dim", hidden // heads)
    norms = (heads * head, kv * head) if config.get("use_qk_norm", True) else None
    layers = []
    for index in range(read("num_hidden_layers")):
        prefix = f"layers.{index}"
        attention = grouped_attention(f"{prefix}.self_attn", hidden, heads, kv, head, norms=norms)
        feed = experts(
            f"{prefix}.block_sparse_moe",
            hidden,
            read("intermediate_size"),
            read("num_local_experts"),
            read("num_experts_per_tok"),
            names=("w1", "w3", "w2"),
        )
        layers.append(_layer(prefix, hidden, (attention, feed), _TWO))
    return tuple(layers), _outer(config, source)


def _qwen35(config: Config, source: str) -> Built:
    """Three layers of linear attention for each of full attention, whose queries carry a gate."""
    read = _Reader(config, source)
    hidden, heads, count = read("hidden_size"), read("num_attention_heads"), read("num_hidden_layers")
    head, every = read("head_dim", 256), read("full_attention_interval", 4)
    default = ["linear_attention" if (index + 1) % every else "full_attention" for index in range(count)]
    layers = []
    for index, kind in enumerate(read.kinds("layer_types", count, default)):
        prefix = f"layers.{index}"
        if kind == "full_attention":
            mixer = grouped_attention(
                f"{prefix}.self_attn",
                hidden,
                heads,
                read("num_key_value_heads"),
                head,
                gated=True,
                qkv_bias=bool(config.get("attention_bias", False)),
                output_bias=bool(config.get("attention_bias", False)),
                norms=(head, head),
            )
        elif kind == "linear_attention":
            mixer = gated_delta(
                f"{prefix}.linear_attn",
                hidden,
                read("linear_num_key_heads"),
                read("linear_num_value_heads"),
                read("linear_key_head_dim"),
                read("linear_value_head_dim"),
                read("linear_conv_kernel_dim"),
                2,
            )
        else:
            raise ConfigError(f"{source}: layer_types {kind!r} is not known; known: full_attention, linear_attention")
        if config.get("num_experts"):
            shared = mlp(f"{prefix}.mlp.shared_expert", hidden, read("shared_expert_intermediate_size"))
            feed = experts(
                f"{prefix}.mlp",
                hidden,
                read("moe_intermediate_size"),
                read("num_experts"),
                read("num_experts_per_tok"),
                shared=shared,
                others=(Module(f"{prefix}.mlp.shared_expert_gate", Role.MLP, 1, hidden, parts=1),),
            )
        else:
            feed = mlp(f"{prefix}.mlp", hidden, read("intermediate_size"))
        layers.append(_layer(prefix, hidden, (mixer, feed), _TWO))
    return tuple(layers), _outer(config, source)


def _mimo(config: Config, source: str) -> Built:
    """Windowed layers between full ones, with heads of their own numbers and sizes; values narrower than keys."""
    read = _Reader(config, source)
    hidden, count = read("hidden_size"), read("num_hidden_layers")
    sparse = read.kinds("moe_layer_freq", count)
    layers = []
    for index, windowed in enumerate(read.kinds("hybrid_layer_pattern", count)):
        prefix, kind = f"layers.{index}", "swa_" if windowed else ""
        heads = read(f"{kind}num_attention_heads")
        has_sink = config.get("add_swa_attention_sink_bias" if windowed else "add_full_attention_sink_bias", False)
        attention = grouped_attention(
            f"{prefix}.self_attn",
            hidden,
            heads,
            read(f"{kind}num_key_value_heads"),
            read(f"{kind}head_dim"),
            read(f"{kind}v_head_dim"),
            qkv_bias=bool(config.get("attention_bias", False)),
            window=read("sliding_window") if windowed else None,
            others=(vector(f"{prefix}.self_attn.sinks", heads),) if has_sink else (),
        )
        if sparse[index]:
            feed = experts(
                f"{prefix}.mlp",
                hidden,
                read("moe_intermediate_size"),
                read("n_routed_experts"),
                read("num_experts_per_tok"),
            )
        else:
            feed = mlp(f"{prefix}.mlp", hidden, read("intermediate_size"))
        layers.append(_layer(prefix, hidden, (attention, feed), _TWO))
    return tuple(layers), _outer(config, source)


def _step(config: Config, source: str) -> Built:
    """A gate for each head beside windowed and full attention; a shared expert beside the routed ones."""
    read = _Reader(config, source)
    hidden, heads, count = read("hidden_size"), read("num_attention_heads"), read("num_hidden_layers")
    head = read("head_dim")
    layers = []
    for index, kind in enumerate(read.kinds("layer_types", count)):
        prefix = f"layers.{index}"
        attention = grouped_attention(
            f"{prefix}.self_attn",
            hidden,
            heads,
            read("num_key_value_heads"),
            head,
            norms=(head, head),
            window=read("sliding_window") if kind == "sliding_attention" else None,
            others=(Module(f"{prefix}.self_attn.g_proj", Role.ATTENTION, heads, hidden),),
        )
        if index < read("first_k_dense_replace"):
            feed = mlp(f"{prefix}.mlp", hidden, read("intermediate_size"))
        else:
            feed = experts(
                f"{prefix}.mlp",
                hidden,
                read("moe_intermediate_size"),
                read("num_experts"),
                read("num_experts_per_tok"),
                shared=mlp(f"{prefix}.mlp.shared_experts", hidden, read("share_expert_dim")),
            )
        layers.append(_layer(prefix, hidden, (attention, feed), _TWO))
    return tuple(layers), _outer(config, source)


def _deepseek(config: Config, source: str) -> Built:
    """MLA and experts: DeepSeek V2/V3 and Kimi; with an indexer, GLM-5 and DeepSeek V3.2."""
    read = _Reader(config, source)
    hidden, heads, count = read("hidden_size"), read("num_attention_heads"), read("num_hidden_layers")
    indexer = (read("index_n_heads"), read("index_head_dim")) if config.get("index_n_heads") else None
    owners = read.kinds("indexer_types", count, ["full"] * count)
    layers = []
    for index in range(count):
        prefix = f"layers.{index}"
        attention = latent_attention(
            f"{prefix}.self_attn",
            hidden,
            heads,
            q_rank=read("q_lora_rank") if config.get("q_lora_rank") else None,
            kv_rank=read("kv_lora_rank"),
            nope=read("qk_nope_head_dim"),
            rope=read("qk_rope_head_dim"),
            value=read("v_head_dim"),
            indexer=indexer if owners[index] == "full" else None,
        )
        if index < read.zero_or("first_k_dense_replace") or index % read("moe_layer_freq", 1):
            feed = mlp(f"{prefix}.mlp", hidden, read("intermediate_size"))
        else:
            shared = read.zero_or("n_shared_experts") * read("moe_intermediate_size")
            feed = experts(
                f"{prefix}.mlp",
                hidden,
                read("moe_intermediate_size"),
                read("n_routed_experts"),
                read("num_experts_per_tok"),
                shared=mlp(f"{prefix}.mlp.shared_experts", hidden, shared) if shared else None,
            )
        layers.append(_layer(prefix, hidden, (attention, feed), _TWO))
    return tuple(layers), _outer(config, source)


def _deepseek_v4(config: Config, source: str) -> Built:
    """One key that is its own value, in a window; beyond it an entry for every 4 or 128 tokens (`compress_ratios`)."""
    read = _Reader(config, source)
    hidden, heads, count = read("hidden_size"), read("num_attention_heads"), read("num_hidden_layers")
    head, q_rank, groups = read("head_dim"), read("q_lora_rank"), read("o_groups")
    streams = read("hc_mult")
    mix, wide = (2 + streams) * streams, streams * hidden
    layers = []
    for index, ratio in enumerate(read.kinds("compress_ratios", count)):
        prefix = f"layers.{index}"
        name = f"{prefix}.attn"
        attention = [
            vector(f"{name}.sinks", heads),
            Module(f"{name}.q_a_proj", Role.ATTENTION, q_rank, hidden, parts=1),
            vector(f"{name}.q_a_norm", q_rank),
            Module(f"{name}.q_b_proj", Role.ATTENTION, heads * head, q_rank),
            Module(f"{name}.kv_proj", Role.ATTENTION, head, hidden, parts=1),
            vector(f"{name}.kv_norm", head),
            Module(f"{name}.o_a_proj", Role.ATTENTION, groups * read("o_lora_rank"), heads * head // groups),
            Module(f"{name}.o_b_proj", Role.ATTENTION, hidden, groups * read("o_lora_rank")),
        ]
        caches = [Cache(1, head, 0, read("sliding_window"), parts=1)]
        if ratio:
            # Entries overlap where four tokens make one, so that the compressor works on twice the width.
            overlap = 2 if ratio == 4 else 1
            attention += _compressor(f"{name}.compressor", hidden, head, ratio, overlap)
            caches.append(Cache(1, head, 0, stride=ratio, parts=1))
        if ratio == 4:
            width, index_heads = read("index_head_dim"), read("index_n_heads")
            attention += _compressor(f"{name}.indexer.compressor", hidden, width, ratio, overlap)
            attention += [
                Module(f"{name}.indexer.q_b_proj", Role.ATTENTION, index_heads * width, q_rank, parts=1),
                Module(f"{name}.indexer.weights_proj", Role.ATTENTION, index_heads, hidden, parts=1),
            ]
            caches.append(Cache(0, 0, 0, stride=ratio, parts=1, side=width + 4 * -(-width // 128)))
        mixer = Part(tuple(attention), tuple(caches), mixed=heads * head + head, score_width=2 * heads * head)
        feed = experts(
            f"{prefix}.ffn",
            hidden,
            read("moe_intermediate_size"),
            read("n_routed_experts"),
            read("num_experts_per_tok"),
            shared=mlp(
                f"{prefix}.ffn.shared_experts", hidden, read("moe_intermediate_size") * read("n_shared_experts")
            ),
        )
        connections = [
            vector(f"{prefix}.{which}_hc", mix * wide + mix + 3, Role.MLP if which == "ffn" else Role.ATTENTION)
            for which in ("attn", "ffn")
        ]
        layers.append(_layer(prefix, hidden, (mixer, feed), _TWO, *connections))
    join = vector("hc_head", streams * wide + streams + 1, Role.NORM)
    return tuple(layers), (*_outer(config, source), join)


def _compressor(name: str, hidden: int, width: int, ratio: int, overlap: int) -> list[Module]:
    wide = overlap * width
    return [
        vector(f"{name}.position_bias", ratio * wide, Role.ATTENTION),
        Module(f"{name}.kv_proj", Role.ATTENTION, wide, hidden, parts=1),
        Module(f"{name}.gate_proj", Role.ATTENTION, wide, hidden, parts=1),
        vector(f"{name}.kv_norm", width),
    ]


def _gpt_oss(config: Config, source: str) -> Built:
    read = _Reader(config, source)
    hidden, heads, count = read("hidden_size"), read("num_attention_heads"), read("num_hidden_layers")
    layers = []
    for index, kind in enumerate(read.kinds("layer_types", count)):
        prefix = f"layers.{index}"
        attention = grouped_attention(
            f"{prefix}.self_attn",
            hidden,
            heads,
            read("num_key_value_heads"),
            read("head_dim", hidden // heads),
            qkv_bias=bool(config.get("attention_bias", True)),
            output_bias=bool(config.get("attention_bias", True)),
            window=read("sliding_window") if kind == "sliding_attention" else None,
            others=(vector(f"{prefix}.self_attn.sinks", heads),),
        )
        feed = experts(
            f"{prefix}.mlp",
            hidden,
            read("intermediate_size"),
            read("num_local_experts"),
            read("num_experts_per_tok"),
            router="router",
            router_bias=True,
            bias=True,
        )
        layers.append(_layer(prefix, hidden, (attention, feed), _TWO))
    return tuple(layers), _outer(config, source)


def _llama4(config: Config, source: str) -> Built:
    """Three layers attend within chunks for each that attends to all; experts in every or every second layer."""
    read = _Reader(config, source)
    hidden, count = read("hidden_size"), read("num_hidden_layers")
    # An empty list means the default: every fourth layer has no rotary positions, and attends to everything.
    rotary = config.get("no_rope_layers") or [(index + 1) % 4 for index in range(count)]
    if not isinstance(rotary, list) or len(rotary) < count:
        raise ConfigError(f"{source}: no_rope_layers must list all {count} layers")
    chunk = read.zero_or("attention_chunk_size") or None
    every = read("interleave_moe_layer_step")
    layers = []
    for index in range(count):
        prefix = f"layers.{index}"
        attention = grouped_attention(
            f"{prefix}.self_attn",
            hidden,
            read("num_attention_heads"),
            read("num_key_value_heads"),
            read("head_dim", hidden // read("num_attention_heads")),
            qkv_bias=bool(config.get("attention_bias", False)),
            output_bias=bool(config.get("attention_bias", False)),
            window=chunk if rotary[index] else None,
        )
        if (index + 1) % every == 0:
            inner = read("intermediate_size")
            feed = experts(
                f"{prefix}.feed_forward",
                hidden,
                inner,
                read("num_local_experts"),
                read("num_experts_per_tok"),
                router="router",
                shared=mlp(f"{prefix}.feed_forward.shared_expert", hidden, inner),
            )
        else:
            feed = mlp(f"{prefix}.feed_forward", hidden, read("intermediate_size_mlp"))
        layers.append(_layer(prefix, hidden, (attention, feed), _TWO))
    return tuple(layers), _outer(config, source)


_BLOCKS = {"M": "mamba", "*": "attention", "E": "moe", "-": "mlp"}


def _nemotron_h(config: Config, source: str) -> Built:
    """Mamba, attention, MLP and experts, one of them a layer; without gates, and experts in a latent space."""
    read = _Reader(config, source)
    hidden, heads = read("hidden_size"), read("num_attention_heads")
    pattern = config.get("hybrid_override_pattern")
    blocks = [_BLOCKS.get(each, each) for each in pattern] if pattern else config.get("layers_block_type")
    if not isinstance(blocks, list) or not blocks:
        raise ConfigError(f"{source}: key 'hybrid_override_pattern' or 'layers_block_type' is missing")
    bias = bool(config.get("mlp_bias", False))
    layers = []
    for index, kind in enumerate(blocks):
        prefix = f"layers.{index}"
        name = f"{prefix}.mixer"
        if kind == "mamba":
            part = mamba2(
                name,
                hidden,
                read("mamba_num_heads"),
                read("mamba_head_dim"),
                read("n_groups"),
                read("ssm_state_size"),
                read("conv_kernel"),
                conv_bias=bool(config.get("use_conv_bias", True)),
                bias=bool(config.get("mamba_proj_bias", False)),
                state_dtype_bytes=4 if config.get("mamba_ssm_cache_dtype") == "float32" else 2,
                dtype_bytes=2,
            )
        elif kind == "attention":
            head = read("head_dim" if "head_dim" in config else "attention_head_dim")
            biased = bool(config.get("attention_bias", False))
            part = grouped_attention(
                name, hidden, heads, read("num_key_value_heads"), head, qkv_bias=biased, output_bias=biased
            )
        elif kind == "mlp":
            part = mlp(name, hidden, read("intermediate_size"), gated=False, bias=bias)
        elif kind == "moe":
            part = _latent_experts(read, name, hidden, bias)
        else:
            known = ", ".join(_BLOCKS.values())
            raise ConfigError(f"{source}: a layer of kind {kind!r} is not known; known: {known}")
        layers.append(_layer(prefix, hidden, (part,), ("norm",)))
    return tuple(layers), _outer(config, source)


def _latent_experts(read: _Reader, name: str, hidden: int, bias: bool) -> Part:
    latent = read.zero_or("moe_latent_size")
    others = (
        (
            Module(f"{name}.fc1_latent_proj", Role.MLP, latent, hidden),
            Module(f"{name}.fc2_latent_proj", Role.MLP, hidden, latent),
        )
        if latent
        else ()
    )
    shared = mlp(f"{name}.shared_experts", hidden, read("moe_shared_expert_intermediate_size"), gated=False, bias=bias)
    return experts(
        name,
        hidden,
        read("moe_intermediate_size"),
        read("n_routed_experts"),
        read("num_experts_per_tok"),
        gated=False,
        bias=bias,
        shared=shared,
        others=others,
        width=latent or None,
    )


def _gemma4(config: Config, source: str) -> Built:
    """Full layers with wider and fewer heads, whose values are made from the keys; an MLP beside the experts."""
    read = _Reader(config, source)
    hidden, heads, count = read("hidden_size"), read("num_attention_heads"), read("num_hidden_layers")
    shared_layers = read.zero_or("num_kv_shared_layers")
    if shared_layers or read.zero_or("hidden_size_per_layer_input"):
        raise ConfigError(
            f"{source}: num_kv_shared_layers and hidden_size_per_layer_input other than 0 are not supported"
        )
    has_experts = bool(config.get("enable_moe_block", False))
    layers = []
    for index, kind in enumerate(read.kinds("layer_types", count)):
        prefix, is_full = f"layers.{index}", kind == "full_attention"
        same = is_full and bool(config.get("attention_k_eq_v", False))
        head = read("global_head_dim") if is_full else read("head_dim")
        kv = read("num_global_key_value_heads") if same else read("num_key_value_heads")
        attention = grouped_attention(
            f"{prefix}.self_attn",
            hidden,
            heads,
            kv,
            head,
            norms=(head, head),
            window=None if is_full else read("sliding_window"),
            has_values=not same,
        )
        dense = mlp(f"{prefix}.mlp", hidden, read("intermediate_size"))
        norms = [*_TWO, "pre_feedforward_layernorm", "post_feedforward_layernorm"]
        parts = [attention, dense]
        more = [vector(f"{prefix}.layer_scalar", 1)] if config.get("has_layer_scalar") else []
        if has_experts:
            number = read("num_experts")
            routed = mlp(
                f"{prefix}.experts.0", hidden, read("moe_intermediate_size"), copies=number, used=read("top_k_experts")
            )
            parts.append(routed)
            more += [
                vector(f"{prefix}.router.scale", hidden),
                vector(f"{prefix}.router.per_expert_scale", number),
                Module(f"{prefix}.router.proj", Role.MLP, number, hidden, parts=1),
            ]
            norms += ["post_feedforward_layernorm_1", "post_feedforward_layernorm_2", "pre_feedforward_layernorm_2"]
        layers.append(_layer(prefix, hidden, tuple(parts), tuple(norms), *more))
    return tuple(layers), _outer(config, source, tied_by_default=True)


def _falcon(config: Config, source: str) -> Built:
    """Attention and MLP side by side; one key-value head, or `num_kv_heads` in the newer architecture."""
    read = _Reader(config, source)
    hidden, heads = read("hidden_size"), read("num_attention_heads")
    bias, is_new = bool(config.get("bias", False)), bool(config.get("new_decoder_architecture", False))
    if is_new:
        kv = read("num_kv_heads", heads)
    else:
        kv = 1 if config.get("multi_query", True) else heads
    head, wide = hidden // heads, read("ffn_hidden_size", 4 * hidden)
    # Each norm has a bias as well.  Two of them where attention and MLP read different ones.
    norms = ("ln_attn", "ln_mlp") if is_new else ("input_layernorm",)
    if not is_new and not config.get("parallel_attn", True):
        norms = (*norms, "post_attention_layernorm")
    layers = []
    for index in range(read("num_hidden_layers")):
        prefix = f"h.{index}"
        attention = grouped_attention(
            f"{prefix}.self_attention", hidden, heads, kv, head, qkv_bias=bias, output_bias=bias
        )
        feed = mlp(
            f"{prefix}.mlp",
            hidden,
            wide,
            gated=False,
            bias=bias,
            names=("", "dense_h_to_4h", "dense_4h_to_h"),
        )
        both = [vector(f"{prefix}.{name}", 2 * hidden) for name in norms]
        layers.append(_layer(prefix, hidden, (attention, feed), (), *both))
    tied = bool(config.get("tie_word_embeddings", True))
    return tuple(layers), outer_modules(positive_int(config, "vocab_size", source), hidden, tied, 2 * hidden)


FAMILIES: dict[str, Callable[[Config, str], Built]] = {
    **dict.fromkeys(model_shape.FAMILIES, _plain),
    "Qwen3VLForConditionalGeneration": _renamed("Qwen3ForCausalLM"),
    "Qwen3VLMoeForConditionalGeneration": _renamed("Qwen3MoeForCausalLM"),
    "MiniMaxM2ForCausalLM": _minimax,
    "Qwen3_5ForConditionalGeneration": _qwen35,
    "Qwen3_5MoeForConditionalGeneration": _qwen35,
    "MiMoV2FlashForCausalLM": _mimo,
    "Step3p7FlashForCausalLM": _step,
    "DeepseekV2ForCausalLM": _deepseek,
    "DeepseekV3ForCausalLM": _deepseek,
    "DeepseekV32ForCausalLM": _deepseek,
    "KimiK25ForConditionalGeneration": _deepseek,
    "GlmMoeDsaForCausalLM": _deepseek,
    "DeepseekV4ForCausalLM": _deepseek_v4,
    "GptOssForCausalLM": _gpt_oss,
    "Llama4ForConditionalGeneration": _llama4,
    "NemotronHForCausalLM": _nemotron_h,
    "Gemma4ForConditionalGeneration": _gemma4,
    "FalconForCausalLM": _falcon,
}
