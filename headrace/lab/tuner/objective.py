"""What is sought: the largest throughput or goodput, among settings that keep their bounds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from headrace.errors import ConfigError
from headrace.lab.sim.slo import Slo

GOODPUT = "request_goodput"


@dataclass(frozen=True, slots=True)
class Objective:
    """Maximise `metric` (vLLM's key) while every metric of `bounds` is at most its bound.

    slo   bounds of a single request, for `request_goodput`: requests/s that meet all of them
    """

    metric: str = "output_throughput"
    bounds: Mapping[str, float] = field(default_factory=dict)
    slo: Slo | None = None

    def __post_init__(self) -> None:
        if self.metric == GOODPUT and self.slo is None:
            raise ConfigError("goodput needs the bounds of a request: --goodput ttft:2000 tpot:100")
        if not self.metric.endswith(("throughput", "goodput")):
            raise ConfigError(f"--maximize takes a throughput or {GOODPUT}, not {self.metric!r}")

    def score(self, metrics: Mapping[str, float]) -> float:
        """The metric, or 0 when a bound is broken or the run has not what is asked for."""
        return self.value(metrics) if self.excess(metrics) <= 0 else 0.0

    def value(self, metrics: Mapping[str, float]) -> float:
        """The metric alone; 0 when the run has none, or failed or refused more than a twentieth of its requests."""
        failed, completed = metrics.get("failed", 0.0), metrics.get("completed", 1.0)
        return float(metrics.get(self.metric, 0.0)) if failed <= 0.05 * (failed + completed) else 0.0

    def excess(self, metrics: Mapping[str, float]) -> float:
        """Logarithm of the worst metric over its bound: above 0 a bound is broken; -inf without bounds."""
        ratios = [metrics.get(name, math.inf) / bound for name, bound in self.bounds.items()]
        return math.log(max(max(ratios), 1e-12)) if ratios else -math.inf

    def __str__(self) -> str:
        text = f"the largest {self.metric}"
        if self.metric == GOODPUT:
            text += f" ({str(self.slo).partition(' for ')[0]})"
        if self.bounds:
            text += " with " + " and ".join(f"{name} <= {bound:g}" for name, bound in self.bounds.items())
        return text
