"""What a machine's bandwidth and arithmetic allow a model at most: no step is faster than its reads or its products."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.sizing.memory import kv_bytes_per_token, parameters
from headrace.sizing.modules import Described


@dataclass(frozen=True, slots=True)
class Roofline:
    """Upper bounds in tokens/s, of one sequence that decodes and of prompts that are computed.

    step_bytes         read by a decode step of one sequence
    flops_per_token    of a prompt's token (attention over its context not counted: the bound stays a bound)
    """

    step_bytes: int
    flops_per_token: int
    decode_tokens_per_s: float
    prefill_tokens_per_s: float


def roofline(
    shape: Described,
    held_weight_bytes: int,
    dtype_bytes: int,
    bytes_per_s: float,
    flops_per_s: float,
    context: int = 0,
) -> Roofline:
    """The bounds for weights of `held_weight_bytes` on a machine of `bytes_per_s` and `flops_per_s`.

    A decode step reads every weight once but the embedding table, of which it takes one row, and the experts that
    its token does not use; with `context`, also the keys and values of that many tokens.
    """
    count = parameters(shape)
    products = count.attention + count.mlp + (count.head or count.embedding)
    idle = (count.mlp - count.active_mlp) / products
    read = max(1, held_weight_bytes - count.embedding * dtype_bytes)
    step_bytes = int(read * (1 - idle)) + context * kv_bytes_per_token(shape, dtype_bytes)
    flops = 2 * (count.attention + count.active_mlp)
    return Roofline(step_bytes, flops, bytes_per_s / step_bytes, flops_per_s / flops)
