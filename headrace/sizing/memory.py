"""How much memory a served model takes: weights, KV cache, the peak of a step; and how many KV blocks are left for it.

Everything in bytes unless it says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

from headrace.sizing.model_shape import Dimensions

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


def parameters(shape: Dimensions) -> Parameters:
    """Exact counts of a checkpoint that is not quantised; a tied head counts once."""
    hidden, layers = shape.hidden_size, shape.num_layers
    queries, keys = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    attention = hidden * (queries + 2 * keys) + queries * hidden
    attention += (queries + 2 * keys if shape.qkv_bias else 0) + (hidden if shape.output_bias else 0)
    dense = 3 * hidden * shape.intermediate_size
    dense += 2 * shape.intermediate_size + hidden if shape.mlp_bias else 0
    mlp = active = layers * dense
    if (experts := shape.experts) is not None:
        sparse = layers - len(experts.dense_layers)
        one, router = 3 * hidden * experts.intermediate_size, hidden * experts.count
        mlp = (layers - sparse) * dense + sparse * (experts.count * one + router)
        active = (layers - sparse) * dense + sparse * (experts.per_token * one + router)
    norms = layers * (2 * hidden + (2 * shape.head_dim if shape.qk_norm else 0)) + hidden
    table = shape.vocab_size * hidden
    return Parameters(
        embedding=table,
        head=0 if shape.tie_word_embeddings else table,
        attention=layers * attention,
        mlp=mlp,
        active_mlp=active,
        norms=norms,
    )


def weight_bytes(shape: Dimensions, dtype_bytes: int) -> int:
    """Weights of one dtype throughout.  For quantised files add up the tensors of their headers instead."""
    return parameters(shape).total * dtype_bytes


def kv_bytes_per_token(shape: Dimensions, dtype_bytes: int) -> int:
    """Keys and values of one token over all layers.  It is the key-value heads that count, never the query heads."""
    return 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * dtype_bytes


def forward_bytes(shape: Dimensions, num_tokens: int, dtype_bytes: int = 4) -> int:
    """Peak of a forward pass over `num_tokens`: gate, up and their product, or queries, keys and values where those
    are wider; beside them the residual stream and its normed copy.  The attention's own workspace is not in it."""
    inner = shape.intermediate_size
    if shape.experts is not None:
        inner = max(
            shape.experts.per_token * shape.experts.intermediate_size, inner if shape.experts.dense_layers else 0
        )
    qkv = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim
    return num_tokens * (max(3 * inner, 2 * qkv) + 2 * shape.hidden_size) * dtype_bytes


def sampler_bytes(shape: Dimensions, rows: int) -> int:
    """Peak of choosing `rows` tokens."""
    return rows * shape.vocab_size * 4 * SAMPLER_UNITS


def activation_bytes(shape: Dimensions, max_num_batched_tokens: int, max_num_seqs: int, dtype_bytes: int = 4) -> int:
    """Peak of one step beside weights and KV cache: the forward pass or the sampler, which do not overlap."""
    rows = min(max_num_seqs, max_num_batched_tokens)
    return max(forward_bytes(shape, max_num_batched_tokens, dtype_bytes), sampler_bytes(shape, rows))


def step_that_fits(shape: Dimensions, room_bytes: int, dtype_bytes: int = 4) -> tuple[int, int]:
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
