"""How much memory a served model takes: weights, KV cache, the peak of a step; and how many KV blocks are left for it.

Everything in bytes unless it says otherwise.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from headrace.sizing.modules import Cache, Described, Role, all_modules

# The sampler works in float32 on `[rows, vocabulary]`: logits, a sorted copy with its indices (8 bytes), probabilities.
SAMPLER_UNITS = 5


@dataclass(frozen=True, slots=True)
class Parameters:
    """Numbers of parameters.

    embedding        the table that token ids are looked up in; a tied head uses it too
    head             0 when it is tied
    attention, mlp   weights and biases of all layers; `mlp` includes experts and their routers
    active_mlp       the part of `mlp` that one token uses
    norms            all of them
    """

    embedding: int
    head: int
    attention: int
    mlp: int
    active_mlp: int
    norms: int

    @property
    def total(self) -> int:
        return self.embedding + self.head + self.attention + self.mlp + self.norms


def parameters(shape: Described) -> Parameters:
    """Exact counts of a checkpoint that is not quantised; a tied head counts once."""
    modules = all_modules(shape)

    def total(role: Role) -> int:
        return sum(module.numbers for module in modules if module.role is role)

    return Parameters(
        embedding=total(Role.EMBEDDING),
        head=total(Role.HEAD),
        attention=total(Role.ATTENTION),
        mlp=total(Role.MLP),
        active_mlp=sum(module.active for module in modules if module.role is Role.MLP),
        norms=total(Role.NORM),
    )


def weight_bytes(shape: Described, dtype_bytes: int) -> int:
    """Weights of one dtype throughout.  Of quantised files, see `headrace.sizing.weights`."""
    return parameters(shape).total * dtype_bytes


def kv_bytes_per_token(shape: Described, dtype_bytes: float | Fraction, tensor_parallel: int = 1) -> int:
    """Keys and values of one more token over all layers, on one rank, while every window still has room for it.

    It is the key-value heads that count, never the query heads; each rank keeps at least one.  Without the keys of an
    indexer, whose format is their own: `indexer_bytes_per_token`.
    """
    entries = (
        number * (cache.entry_bytes(dtype_bytes, tensor_parallel) - cache.side) / cache.stride
        for cache, number in _kinds(shape)
    )
    return math.ceil(sum(entries, Fraction(0)))


def indexer_bytes_per_token(shape: Described) -> int:
    """What sparse attention keeps of a token to find it again (0 for most models)."""
    return math.ceil(sum((Fraction(number * each.side, each.stride) for each, number in _kinds(shape)), Fraction(0)))


def far_bytes_per_token(shape: Described, dtype_bytes: float | Fraction, tensor_parallel: int = 1) -> int:
    """Of one more token once it is beyond every window: layers that look back a limited way give as much as they
    take."""
    entries = (
        number * cache.entry_bytes(dtype_bytes, tensor_parallel) / cache.stride
        for cache, number in _kinds(shape)
        if cache.window is None
    )
    return math.ceil(sum(entries, Fraction(0)))


def _kinds(shape: Described) -> Iterable[tuple[Cache, int]]:
    """The few kinds of caches that there are, and how many layers have each."""
    return Counter(cache for layer in shape.layers for cache in layer.caches).items()


def state_bytes_per_sequence(shape: Described, tensor_parallel: int = 1) -> int:
    """Of layers that keep a state instead of tokens."""
    return sum(layer.state_bytes for layer in shape.layers) // tensor_parallel


def sequence_bytes(
    shape: Described,
    length: int,
    dtype_bytes: float | Fraction,
    *,
    block_size: int = 16,
    step_tokens: int = 0,
    tensor_parallel: int = 1,
) -> int:
    """KV cache that one sequence of `length` tokens holds, in whole blocks.

    A windowed layer holds the window and what one step adds to it, at most `step_tokens`, and one block more because
    the window need not start at a block's border (vLLM's `SlidingWindowSpec`).
    """
    whole = Fraction(state_bytes_per_sequence(shape, tensor_parallel))
    for cache, number in _kinds(shape):
        blocks = -(-length // block_size)
        if cache.window is not None:
            blocks = min(blocks, -(-min(cache.window - 1 + step_tokens, length) // block_size) + 1)
        entries = Fraction(blocks * block_size * number, cache.stride)
        whole += entries * cache.entry_bytes(dtype_bytes, tensor_parallel)
    return math.ceil(whole)


def forward_bytes(shape: Described, num_tokens: int, dtype_bytes: int = 4, tensor_parallel: int = 1) -> int:
    """Peak of a forward pass over `num_tokens`: gate, up and their product, or queries, keys and values where those
    are wider; beside them the residual stream and its normed copy.  The attention's own workspace is not in it."""
    widest = max(max(3 * layer.inner, 2 * layer.mixed) for layer in shape.layers)
    return num_tokens * (widest // tensor_parallel + 2 * shape.hidden_size) * dtype_bytes


def sampler_bytes(shape: Described, rows: int) -> int:
    """Peak of choosing `rows` tokens."""
    return rows * shape.vocab_size * 4 * SAMPLER_UNITS


def activation_bytes(shape: Described, max_num_batched_tokens: int, max_num_seqs: int, dtype_bytes: int = 4) -> int:
    """Peak of one step beside weights and KV cache: the forward pass or the sampler, which do not overlap."""
    rows = min(max_num_seqs, max_num_batched_tokens)
    return max(forward_bytes(shape, max_num_batched_tokens, dtype_bytes), sampler_bytes(shape, rows))


def step_that_fits(shape: Described, room_bytes: int, dtype_bytes: int = 4) -> tuple[int, int]:
    """The largest max_num_batched_tokens and max_num_seqs whose step stays within `room_bytes`; 0 when none does."""
    room = max(0, room_bytes)
    tokens, rows = room // forward_bytes(shape, 1, dtype_bytes), room // sampler_bytes(shape, 1)
    return tokens, min(tokens, rows)


def kv_blocks_that_fit(free_bytes: int, utilization: float, weights: int, activations: int, block_bytes: int) -> int:
    """Blocks for which `utilization` of the free memory has room after weights and activations; 0 when none fits."""
    return max(0, int(free_bytes * utilization) - weights - activations) // block_bytes


def sequences_that_fit(num_blocks: int, block_size: int, length: int) -> float:
    """How many sequences of `length` tokens the KV cache holds at once: a sequence owns whole blocks."""
    return num_blocks / -(-length // block_size)
