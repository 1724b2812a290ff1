"""Families with grouped-query attention whose layers differ: windows, experts, odd heads.  One function each."""

from __future__ import annotations

from headrace.errors import ConfigError
from headrace.sizing.config_values import positive_int
from headrace.sizing.family import TWO_NORMS, Built, Config, Reader, layer_of, outer_of
from headrace.sizing.mixers import experts, grouped_attention, mlp
from headrace.sizing.modules import Module, Role, outer_modules, vector


def minimax(config: Config, source: str) -> Built:
    read = Reader(config, source)
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
        layers.append(layer_of(prefix, hidden, (attention, feed), TWO_NORMS))
    return tuple(layers), outer_of(config, source)


def mimo(config: Config, source: str) -> Built:
    """Windowed layers between full ones, with heads of their own numbers and sizes; values narrower than keys."""
    read = Reader(config, source)
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
        layers.append(layer_of(prefix, hidden, (attention, feed), TWO_NORMS))
    return tuple(layers), outer_of(config, source)


def step(config: Config, source: str) -> Built:
    """A gate for each head beside windowed and full attention; a shared expert beside the routed ones."""
    read = Reader(config, source)
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
        layers.append(layer_of(prefix, hidden, (attention, feed), TWO_NORMS))
    return tuple(layers), outer_of(config, source)


def gpt_oss(config: Config, source: str) -> Built:
    read = Reader(config, source)
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
        layers.append(layer_of(prefix, hidden, (attention, feed), TWO_NORMS))
    return tuple(layers), outer_of(config, source)


def llama4(config: Config, source: str) -> Built:
    """Three layers attend within chunks for each that attends to all; experts in every or every second layer."""
    read = Reader(config, source)
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
        layers.append(layer_of(prefix, hidden, (attention, feed), TWO_NORMS))
    return tuple(layers), outer_of(config, source)


def gemma4(config: Config, source: str) -> Built:
    """Full layers with wider and fewer heads, whose values are made from the keys; an MLP beside the experts."""
    read = Reader(config, source)
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
        norms = [*TWO_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm"]
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
        layers.append(layer_of(prefix, hidden, tuple(parts), tuple(norms), *more))
    return tuple(layers), outer_of(config, source, tied_by_default=True)


def falcon(config: Config, source: str) -> Built:
    """Attention and MLP side by side; one key-value head, or `num_kv_heads` in the newer architecture."""
    read = Reader(config, source)
    hidden, heads = read("hidden_size"), read("num_attention_heads")
    bias, is_new = bool(config.get("bias", False)), bool(config.get("new_decoder_architecture", False))
    grouped = read("num_kv_heads", heads) if is_new else 0
    kv = grouped or (1 if config.get("multi_query", True) else heads)
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
        layers.append(layer_of(prefix, hidden, (attention, feed), (), *both))
    tied = bool(config.get("tie_word_embeddings", True))
    return tuple(layers), outer_modules(positive_int(config, "vocab_size", source), hidden, tied, 2 * hidden)
