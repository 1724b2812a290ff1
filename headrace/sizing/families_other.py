"""Families that keep something else than keys and values of every head: latent vectors, states, compressed entries."""

from __future__ import annotations

from headrace.errors import ConfigError
from headrace.sizing.family import TWO_NORMS, Built, Config, Reader, layer_of, outer_of
from headrace.sizing.mixers import Part, experts, gated_delta, grouped_attention, latent_attention, mamba2, mlp
from headrace.sizing.modules import Cache, Module, Role, vector


def qwen35(config: Config, source: str) -> Built:
    """Three layers of linear attention for each of full attention, whose queries carry a gate."""
    read = Reader(config, source)
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
        layers.append(layer_of(prefix, hidden, (mixer, feed), TWO_NORMS))
    return tuple(layers), outer_of(config, source)


def deepseek(config: Config, source: str) -> Built:
    """MLA and experts: DeepSeek V2/V3 and Kimi; with an indexer, GLM-5 and DeepSeek V3.2."""
    read = Reader(config, source)
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
        layers.append(layer_of(prefix, hidden, (attention, feed), TWO_NORMS))
    return tuple(layers), outer_of(config, source)


def deepseek_v4(config: Config, source: str) -> Built:
    """One key that is its own value, in a window; beyond it an entry for every 4 or 128 tokens (`compress_ratios`)."""
    read = Reader(config, source)
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
        layers.append(layer_of(prefix, hidden, (mixer, feed), TWO_NORMS, *connections))
    join = vector("hc_head", streams * wide + streams + 1, Role.NORM)
    return tuple(layers), (*outer_of(config, source), join)


def _compressor(name: str, hidden: int, width: int, ratio: int, overlap: int) -> list[Module]:
    wide = overlap * width
    return [
        vector(f"{name}.position_bias", ratio * wide, Role.ATTENTION),
        Module(f"{name}.kv_proj", Role.ATTENTION, wide, hidden, parts=1),
        Module(f"{name}.gate_proj", Role.ATTENTION, wide, hidden, parts=1),
        vector(f"{name}.kv_norm", width),
    ]


_BLOCKS = {"M": "mamba", "*": "attention", "E": "moe", "-": "mlp"}


def nemotron_h(config: Config, source: str) -> Built:
    """Mamba, attention, MLP and experts, one of them a layer; without gates, and experts in a latent space."""
    read = Reader(config, source)
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
        layers.append(layer_of(prefix, hidden, (part,), ("norm",)))
    return tuple(layers), outer_of(config, source)


def _latent_experts(read: Reader, name: str, hidden: int, bias: bool) -> Part:
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
