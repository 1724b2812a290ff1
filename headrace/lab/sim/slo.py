"""A joint objective: how many requests meet every bound at once, and what a server gives under it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.errors import ConfigError
from headrace.lab.metrics.vllm import parse_goodput
from headrace.lab.sim.outcome import NEVER, Outcome


@dataclass(frozen=True, slots=True)
class Slo:
    """Bounds of one request in milliseconds (inf: none), and the share of requests that must meet all of them.

    Latency counts from when a request was due, so that a server that makes its clients wait cannot hide it.
    """

    ttft_ms: float = float("inf")
    tpot_ms: float = float("inf")
    e2el_ms: float = float("inf")
    share: float = 0.99

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ConfigError(
                f"the share of requests that meet the objective must be between 0 and 1, not {self.share:g}"
            )

    def __str__(self) -> str:
        bounds = (("TTFT", self.ttft_ms), ("TPOT", self.tpot_ms), ("E2EL", self.e2el_ms))
        told = [f"{name} <= {bound:g} ms" for name, bound in bounds if bound != float("inf")]
        return f"{' and '.join(told) or 'served'} for {self.share:.4g} of the requests"


def parse_slo(pairs: Sequence[str], share: float) -> Slo:
    """From vLLM's spelling, `ttft:2000 tpot:100`.  Raises ConfigError."""
    bounds: Mapping[str, float] = parse_goodput(pairs)
    return Slo(**{f"{name}_ms": bound for name, bound in bounds.items()}, share=share)


def meets(outcome: Outcome, slo: Slo) -> NDArray[np.bool_]:
    """One value a request, in sending order: served within every bound.  Refused and dropped ones do not meet it."""
    planned, first, ended = outcome.traffic.planned_ns, outcome.first_token_ns, outcome.ended_ns
    after = np.maximum(outcome.traffic.output_tokens - 1, 1)
    met: NDArray[np.bool_] = (
        outcome.served
        & (first != NEVER)
        & (first - planned <= slo.ttft_ms * 1e6)
        & ((ended - first) / after <= slo.tpot_ms * 1e6)
        & (ended - planned <= slo.e2el_ms * 1e6)
    )
    return met
