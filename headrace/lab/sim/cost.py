"""Seconds of a step as a function of what it computes.

One form serves the analytic, the fitted and the tabulated model:

    base + max(floor, curve(T)) + kv K + pair A + sequence N + row R (+ decode_only when no prompt token is computed)

The terms are those that step times of real engines need (tests and `docs/simulation.md` say how well they do): reading
the weights (`floor`), products for T tokens (`curve`), reading the keys and values of K tokens (linear in K), attention
of prompts within themselves (A pairs), and constants a step, a sequence and a sampled row.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

from headrace.errors import ConfigError


class StepShape(NamedTuple):
    """What one step computes, as far as its duration depends on it.

    tokens          T, all tokens of the step
    prefill_tokens  those of prompts (also of a preempted sequence that computes its own output again)
    decodes         sequences that compute one new token
    kv_tokens       K, context of the decodes: keys and values that are read for them
    pairs           A, query-key pairs of the prompts' chunks: sum of n (2 start + n) over chunks of n tokens, which is
                    twice the usual n (start + n/2) and so stays a whole number
    rows            R, positions whose logits are computed: one a sequence that samples, and one a draft
    sequences       N, chunks of the step
    """

    tokens: int
    prefill_tokens: int
    decodes: int
    kv_tokens: int
    pairs: int
    rows: int
    sequences: int


class CostModel(Protocol):
    """Anything that tells a step's seconds.  `StepCost` also runs in the fast path."""

    def seconds(self, step: StepShape) -> float: ...


@dataclass(frozen=True, slots=True)
class StepCost:
    """The form above; all coefficients in seconds (per token, pair, sequence or row).

    knots   (tokens, seconds) with both increasing: the curve of T, linear between its knots and beyond them along the
            last piece; empty: token_s * T
    """

    base_s: float = 0.0
    token_s: float = 0.0
    kv_token_s: float = 0.0
    floor_s: float = 0.0
    pair_s: float = 0.0
    sequence_s: float = 0.0
    row_s: float = 0.0
    decode_only_s: float = 0.0
    knots: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name != "knots" and not math.isfinite(value):
                raise ConfigError(f"the cost's {name} is {value}; it must be a finite number")
        tokens = [x for x, _ in self.knots]
        if len(tokens) == 1 or any(b <= a for a, b in pairwise(tokens)):
            raise ConfigError("the cost's knots need at least two values of tokens, each above the last")

    def seconds(self, step: StepShape) -> float:
        # The fast path computes the same expression in the same order: the bits must agree.
        work = self._curve(step.tokens) if self.knots else self.token_s * step.tokens
        s = self.base_s + (work if work > self.floor_s else self.floor_s)
        s += self.kv_token_s * step.kv_tokens
        s += self.pair_s * step.pairs
        s += self.sequence_s * step.sequences
        s += self.row_s * step.rows
        if step.prefill_tokens == 0:
            s += self.decode_only_s
        return s

    def _curve(self, tokens: int) -> float:
        knots = self.knots
        i = min(max(bisect_right([x for x, _ in knots], tokens) - 1, 0), len(knots) - 2)
        (x0, y0), (x1, y1) = knots[i], knots[i + 1]
        return y0 + (y1 - y0) * ((tokens - x0) / (x1 - x0))

    def to_json(self) -> dict[str, Any]:
        """The coefficients that are not zero; read back by `StepCost.from_json`."""
        return {name: value for name, value in asdict(self).items() if value}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> StepCost:
        values = dict(data)
        values["knots"] = tuple((float(x), float(y)) for x, y in values.get("knots", ()))
        return cls(**values)


def duration_ns(seconds: float) -> int:
    """Simulated time is whole nanoseconds, so that sums do not depend on their order."""
    return max(0, round(seconds * 1e9))
