"""Many replicas behind a router, simulated together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.errors import ConfigError
from headrace.lab.sim.outcome import Outcome
from headrace.lab.sim.routing import POLICIES, route
from headrace.lab.sim.server import Server
from headrace.lab.sim.simulate import simulate
from headrace.lab.sim.slo import Slo, meets
from headrace.lab.sim.traffic import Traffic


@dataclass(frozen=True, slots=True)
class Fleet:
    """`replicas` equal servers behind a router with one of `routing.POLICIES`."""

    server: Server
    replicas: int
    routing: str = "least-requests"

    def __post_init__(self) -> None:
        if self.replicas < 1:
            raise ConfigError(f"a fleet has at least one replica, not {self.replicas}")
        if self.routing not in POLICIES:
            raise ConfigError(f"there is no routing {self.routing!r} (known: {', '.join(POLICIES)})")


@dataclass(frozen=True, slots=True)
class FleetOutcome:
    """One simulated run of a fleet.

    chosen   each request's replica, in sending order
    parts    what became of each replica's share
    """

    traffic: Traffic
    chosen: NDArray[np.int64]
    parts: tuple[Outcome, ...]

    def meets(self, slo: Slo) -> NDArray[np.bool_]:
        """One value a request, in sending order."""
        found = np.zeros(len(self.traffic), np.bool_)
        for replica, part in enumerate(self.parts):
            found[self.chosen == replica] = meets(part, slo)
        return found

    def share(self, slo: Slo) -> float:
        """Of the requests that meet the objective."""
        return float(self.meets(slo).mean()) if len(self.traffic) else 1.0

    @property
    def duration_s(self) -> float:
        return max((part.duration_s for part in self.parts), default=0.0)

    @property
    def imbalance(self) -> float:
        """The busiest replica's tokens over the mean: 1 is even."""
        tokens = [int(part.step("tokens").sum()) for part in self.parts]
        return max(tokens) / (sum(tokens) / len(tokens)) if sum(tokens) else 1.0


def simulate_fleet(traffic: Traffic, fleet: Fleet) -> FleetOutcome:
    """Route every request, then simulate each replica with its share.  Pure, as `simulate` is."""
    chosen = route(fleet.routing, traffic, fleet.server, fleet.replicas)
    return FleetOutcome(traffic, chosen, _simulate_parts(traffic, chosen, fleet))


def _simulate_parts(traffic: Traffic, chosen: NDArray[np.int64], fleet: Fleet) -> tuple[Outcome, ...]:
    return tuple(
        simulate(traffic.take(np.flatnonzero(chosen == replica)), fleet.server) for replica in range(fleet.replicas)
    )
