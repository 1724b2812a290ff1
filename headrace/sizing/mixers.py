"""The parts that layers are made of: each function lists the weights of one kind of attention or MLP, and its cache.

Names and sizes follow the checkpoints (checked against transformers' own modules, `tests/parity/test_sizes.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from headrace.sizing.modules import Cache, Module, Role, vector


@dataclass(frozen=True, slots=True)
class Part:
    """Weights and caches of one attention or MLP; the fields are those of a `Layer`."""

    modules: tuple[Module, ...]
    caches: tuple[Cache, ...] = ()
    inner: int = 0
    mixed: int = 0
    score_width: int = 0
    state_bytes: int = 0


def grouped_attention(
    prefix: str,
    hidden: int,
    heads: int,
    kv_heads: int,
    key: int,
    value: int | None = None,
    *,
    qkv_bias: bool = False,
    output_bias: bool = False,
    gated: bool = False,
    norms: tuple[int, int] | None = None,
    window: int | None = None,
    has_values: bool = True,
    others: tuple[Module, ...] = (),
) -> Part:
    """Queries in `heads`, keys and values in `kv_heads`: what makes a KV cache small is the second number.

    gated        the query projection makes a gate as well (twice the width)
    norms        widths of the query and key norms
    has_values   False: values are made from the keys, and still cached
    """
    value = key if value is None else value
    attention = Role.ATTENTION
    queries = heads * key * (2 if gated else 1)
    modules = [
        Module(f"{prefix}.q_proj", attention, queries, hidden, queries if qkv_bias else 0),
        Module(
            f"{prefix}.k_proj", attention, kv_heads * key, hidden, kv_heads * key if qkv_bias else 0, parts=kv_heads
        ),
    ]
    if has_values:
        bias = kv_heads * value if qkv_bias else 0
        modules.append(Module(f"{prefix}.v_proj", attention, kv_heads * value, hidden, bias, parts=kv_heads))
    modules.append(Module(f"{prefix}.o_proj", attention, hidden, heads * value, hidden if output_bias else 0))
    if norms is not None:
        modules += [vector(f"{prefix}.q_norm", norms[0]), vector(f"{prefix}.k_norm", norms[1])]
    return Part(
        (*modules, *others),
        (Cache(kv_heads, key, value, window, parts=kv_heads),),
        mixed=heads * key + kv_heads * (key + value),
        score_width=heads * (key + value),
    )


def latent_attention(
    prefix: str,
    hidden: int,
    heads: int,
    *,
    q_rank: int | None,
    kv_rank: int,
    nope: int,
    rope: int,
    value: int,
    indexer: tuple[int, int] | None = None,
    caches_index: bool | None = None,
) -> Part:
    """MLA: a token keeps one latent vector and one rotated key, whatever the number of heads.

    indexer        (heads, width) of the lightning indexer that chooses tokens; it keeps one key a token in fp8, with
                   a float32 scale per 128 numbers (vLLM's indexer cache)
    caches_index   False: the indexer's keys are another layer's
    """
    attention, queries = Role.ATTENTION, heads * (nope + rope)
    modules = []
    if q_rank is None:
        modules.append(Module(f"{prefix}.q_proj", attention, queries, hidden))
    else:
        modules += [
            Module(f"{prefix}.q_a_proj", attention, q_rank, hidden, parts=1),
            vector(f"{prefix}.q_a_layernorm", q_rank),
            Module(f"{prefix}.q_b_proj", attention, queries, q_rank),
        ]
    modules += [
        Module(f"{prefix}.kv_a_proj_with_mqa", attention, kv_rank + rope, hidden, parts=1),
        vector(f"{prefix}.kv_a_layernorm", kv_rank),
        Module(f"{prefix}.kv_b_proj", attention, heads * (nope + value), kv_rank),
        Module(f"{prefix}.o_proj", attention, hidden, heads * value),
    ]
    side = 0
    if indexer is not None:
        index_heads, width = indexer
        modules += [
            Module(f"{prefix}.indexer.wq_b", attention, index_heads * width, q_rank or hidden, parts=1),
            Module(f"{prefix}.indexer.wk", attention, width, hidden, parts=1),
            vector(f"{prefix}.indexer.k_norm", 2 * width),
            Module(f"{prefix}.indexer.weights_proj", attention, index_heads, hidden, parts=1),
        ]
        side = width + 4 * -(-width // 128)
    if caches_index is False:
        side = 0
    return Part(
        tuple(modules),
        (Cache(1, kv_rank + rope, 0, parts=1, side=side),),
        mixed=queries + heads * (nope + value) + kv_rank + rope,
        # Decoding multiplies with the latent vectors themselves.
        score_width=heads * (2 * kv_rank + rope),
    )


def gated_delta(
    prefix: str, hidden: int, key_heads: int, value_heads: int, key: int, value: int, kernel: int, dtype_bytes: int
) -> Part:
    """Gated delta rule (linear attention): a matrix for each value head, and the last inputs of a convolution.

    The state is kept in float32 as the configurations ask (`mamba_ssm_dtype`), the convolution's part in `dtype_bytes`.
    """
    attention, values = Role.ATTENTION, value_heads * value
    mixed = 2 * key_heads * key + values
    modules = (
        vector(f"{prefix}.dt_bias", value_heads),
        vector(f"{prefix}.A_log", value_heads),
        Module(f"{prefix}.conv1d", attention, mixed, kernel, linear=False),
        vector(f"{prefix}.norm", value),
        Module(f"{prefix}.out_proj", attention, hidden, values),
        Module(f"{prefix}.in_proj_qkv", attention, mixed, hidden),
        Module(f"{prefix}.in_proj_z", attention, values, hidden),
        Module(f"{prefix}.in_proj_b", attention, value_heads, hidden),
        Module(f"{prefix}.in_proj_a", attention, value_heads, hidden),
    )
    state = value_heads * key * value * 4 + (kernel - 1) * mixed * dtype_bytes
    return Part(modules, mixed=mixed + values, state_bytes=state)


def mamba2(
    prefix: str,
    hidden: int,
    heads: int,
    head: int,
    groups: int,
    state: int,
    kernel: int,
    *,
    conv_bias: bool,
    bias: bool,
    state_dtype_bytes: int,
    dtype_bytes: int,
) -> Part:
    """A Mamba-2 mixer: a state of `heads * head * state` numbers, and the last inputs of its convolution."""
    attention, inner = Role.ATTENTION, heads * head
    conv = inner + 2 * groups * state
    projected = inner + conv + heads
    modules = (
        vector(f"{prefix}.dt_bias", heads),
        vector(f"{prefix}.A_log", heads),
        vector(f"{prefix}.D", heads),
        Module(f"{prefix}.conv1d", attention, conv, kernel, conv if conv_bias else 0, linear=False),
        Module(f"{prefix}.in_proj", attention, projected, hidden, projected if bias else 0),
        vector(f"{prefix}.norm", inner),
        Module(f"{prefix}.out_proj", attention, hidden, inner, hidden if bias else 0),
    )
    kept = heads * head * state * state_dtype_bytes + (kernel - 1) * conv * dtype_bytes
    return Part(modules, mixed=projected, state_bytes=kept)


def mlp(
    prefix: str,
    hidden: int,
    inner: int,
    *,
    gated: bool = True,
    bias: bool = False,
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
    copies: int = 1,
    used: int = 1,
    parts: int | None = None,
) -> Part:
    """Two matrices, or three with a gate; `copies` of them for experts, of which a token uses `used`."""
    gate, up, down = names
    into = [gate, up] if gated else [up]
    modules = [
        Module(f"{prefix}.{name}", Role.MLP, inner, hidden, inner if bias else 0, copies, used, parts=parts)
        for name in into
    ]
    modules.append(
        Module(f"{prefix}.{down}", Role.MLP, hidden, inner, hidden if bias else 0, copies, used, parts=parts)
    )
    return Part(tuple(modules), inner=used * inner)


def experts(
    prefix: str,
    hidden: int,
    inner: int,
    count: int,
    per_token: int,
    *,
    router: str = "gate",
    router_bias: bool = False,
    gated: bool = True,
    bias: bool = False,
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
    shared: Part | None = None,
    others: tuple[Module, ...] = (),
    width: int | None = None,
) -> Part:
    """A router and `count` MLPs, of which a token uses `per_token`; `shared` experts see every token.

    width   of the experts' own inputs where they work in a latent space
    """
    routed = mlp(
        f"{prefix}.experts.0", width or hidden, inner, gated=gated, bias=bias, names=names, copies=count, used=per_token
    )
    gate = Module(f"{prefix}.{router}", Role.MLP, count, hidden, count if router_bias else 0, parts=1)
    more = shared.modules if shared is not None else ()
    return Part(
        (*routed.modules, gate, *more, *others), inner=routed.inner + (shared.inner if shared is not None else 0)
    )
