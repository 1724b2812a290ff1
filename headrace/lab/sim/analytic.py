"""The cost of a step from a model's shape and a device's peaks alone: a bound, for what nobody has measured."""

from __future__ import annotations

from typing import Protocol

from headrace.lab.sim.cost import StepCost
from headrace.sizing.roofline import StepWork

# Where the curve of T bends: below, weights are read; above, tokens are multiplied.  Experts bend it in between.
_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_FAR = 1024


class Work(Protocol):
    """`sizing.roofline.step_work` with the model, its weights and its KV cache filled in."""

    def __call__(self, *, decodes: int = 0, context: int = 0, prompt: int = 0) -> StepWork: ...


def roofline_cost(work: Work, *, flops_per_s: float, bytes_per_s: float) -> StepCost:
    """The roofline in the form that the simulator takes.

    Real steps take longer: 1.2 to 3 times as long, and a host's time besides.  Calibrate before you decide.
    """
    curve = tuple((float(tokens), work(decodes=tokens).seconds(flops_per_s, bytes_per_s)) for tokens in _TOKENS)
    near, far = work(decodes=1, context=_FAR), work(decodes=1, context=2 * _FAR)
    once, twice = work(prompt=_FAR), work(prompt=2 * _FAR)
    # Twice the prompt is twice the products and four times the pairs: what is above twice is attention.
    pairs = (2 * _FAR) ** 2 - 2 * _FAR**2
    return StepCost(
        knots=curve,
        kv_token_s=(far.kv_bytes - near.kv_bytes) / _FAR / bytes_per_s,
        pair_s=max(0.0, twice.flops - 2 * once.flops) / pairs / flops_per_s,
    )
