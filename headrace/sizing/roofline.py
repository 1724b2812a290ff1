"""What a machine's bandwidth and arithmetic allow a model at most: no step is faster than its reads or its products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from headrace.sizing.memory import parameters
from headrace.sizing.modules import Described, Module, Role


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
    weight_bytes: int,
    bytes_per_s: float,
    flops_per_s: float,
    context_bytes: int = 0,
) -> Roofline:
    """The bounds on a machine of `bytes_per_s` and `flops_per_s`.

    A decode step reads `weight_bytes` but the experts that its token does not use, and `context_bytes` of keys and
    values.  An embedding table of which it takes a row is not in `weight_bytes`; one that is the head as well is.
    """
    count = parameters(shape)
    products = count.attention + count.mlp + (count.head or count.embedding)
    idle = (count.mlp - count.active_mlp) / products
    step_bytes = max(1, int(weight_bytes * (1 - idle)) + context_bytes)
    flops = 2 * (count.attention + count.active_mlp)
    return Roofline(step_bytes, flops, bytes_per_s / step_bytes, flops_per_s / flops)


@dataclass(frozen=True, slots=True)
class StepWork:
    """What one step computes and reads, per device.

    flops          of matrix products and attention
    weight_bytes   read once a step, of the experts only those that some token uses
    kv_bytes       read for decodes and earlier chunks, and written for new tokens
    """

    flops: float
    weight_bytes: float
    kv_bytes: float

    def seconds(self, flops_per_s: float, bytes_per_s: float) -> float:
        """No step is faster than its products and weight reads at their peaks, reads of the cache come after."""
        return max(self.flops / flops_per_s, self.weight_bytes / bytes_per_s) + self.kv_bytes / bytes_per_s


def step_work(
    shape: Described,
    module_bytes: Callable[[Module], int],
    kv_number: Fraction,
    *,
    decodes: int = 0,
    context: int = 0,
    prompt: int = 0,
    tensor_parallel: int = 1,
) -> StepWork:
    """The work of a step that decodes `decodes` sequences of `context` tokens and computes a prompt of `prompt` tokens.

    A token's part of the matrix products is `2 * active` FLOPs.  Attention adds `2 * score_width` a pair of query and
    key, where a windowed layer sees its window only.  Experts are read once if any of the step's tokens uses them
    (even routing assumed).
    """
    tokens = decodes + prompt
    flops = weights = kv = 0.0
    for layer in shape.layers:
        for module in layer.modules:
            share = 1 / module.ranks(tensor_parallel)
            hit = 1 - (1 - module.used / module.copies) ** tokens if module.copies > 1 else 1.0
            weights += module_bytes(module) * hit * share
            flops += 2 * module.active * tokens * share if module.linear else 0
        for cache in layer.caches:
            seen = context if cache.window is None else min(context, cache.window)
            inside = prompt / 2 if cache.window is None else min(prompt / 2, cache.window)
            entry = float(cache.entry_bytes(kv_number, tensor_parallel)) / cache.stride
            kv += entry * (decodes * seen + tokens)
            if cache.heads:
                pairs = (decodes * seen + prompt * inside) / cache.stride
                flops += 2 * layer.score_width * pairs / tensor_parallel
        kv += decodes * layer.state_bytes / tensor_parallel
    product = next((each for each in shape.outer if each.role is Role.HEAD), None) or next(
        each for each in shape.outer if each.role is Role.EMBEDDING
    )
    weights += module_bytes(product) / product.ranks(tensor_parallel)
    rows = decodes + (1 if prompt else 0)
    flops += 2 * product.outputs * product.inputs * rows / tensor_parallel
    return StepWork(flops, weights, kv)
