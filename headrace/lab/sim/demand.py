"""Traffic at any rate and of any length, from known lengths: bootstrapped requests on fresh arrivals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headrace.errors import ConfigError
from headrace.lab.sim.traffic import NS, Traffic, traffic_from_spec
from headrace.lab.workload.spec import WorkloadSpec


@dataclass(frozen=True, slots=True)
class Demand:
    """What requests look like, apart from how many come.

    lengths         real or declared requests that are drawn from, with replacement
    burstiness      shape of the gamma gaps between arrivals: 1 is Poisson, below 1 bursty
    prefix_groups   distinct beginnings; each request belongs to one, evenly (0: as in `lengths`)
    """

    lengths: Traffic
    burstiness: float = 1.0
    prefix_groups: int = 0

    def __post_init__(self) -> None:
        if not len(self.lengths):
            raise ConfigError("a demand needs at least one request to draw lengths from")
        if not self.burstiness > 0:
            raise ConfigError(f"burstiness must be above 0, not {self.burstiness:g}")

    def draw(self, rate: float, count: int, seed: int) -> Traffic:
        """`count` requests at `rate` a second.  The same seed gives the same requests and the same unit-rate gaps, so
        that searches over rates compare like with like (common random numbers)."""
        rng = np.random.default_rng([seed, 0xF1EE7])
        chosen = rng.integers(0, len(self.lengths), count)
        gaps = rng.gamma(self.burstiness, 1 / self.burstiness, count)
        due_s = np.cumsum(gaps) / rate
        groups = rng.integers(0, self.prefix_groups, count) if self.prefix_groups else self.lengths.prefix_group[chosen]
        return Traffic(
            np.rint(due_s * NS).astype(np.int64),
            self.lengths.prompt_tokens[chosen],
            self.lengths.output_tokens[chosen],
            self.lengths.max_tokens[chosen],
            self.lengths.priority[chosen],
            groups,
            self.lengths.prefix_tokens[chosen],
        )


def demand_from_spec(spec: WorkloadSpec, *, prefix_groups: int = 0) -> Demand:
    """Lengths of a plan's workload.  Raises ConfigError for texts whose lengths need a tokenizer."""
    return Demand(traffic_from_spec(spec), min(spec.burstiness, 1e6), prefix_groups)
