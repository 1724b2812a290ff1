"""The slow, obvious fleet: every replica is stepped by the real scheduler, and the router sees what has come back."""

from __future__ import annotations

import numpy as np

from headrace.lab.sim.fleet import Fleet
from headrace.lab.sim.outcome import Outcome
from headrace.lab.sim.simulate import simulate
from headrace.lab.sim.stepwise import _Loop
from headrace.lab.sim.traffic import Traffic


class _Replica(_Loop):
    """A replica that is handed its requests one by one, as their times come."""

    def __init__(self, traffic: Traffic, fleet: Fleet) -> None:
        super().__init__(traffic, fleet.server, None, None)
        self.handed: list[int] = []

    def advance(self, until: int) -> None:
        """All steps that begin before `until`, and what they finish."""
        while self.now < until:
            while self.entering and self.queued[self.entering[0]] <= self.now:
                self._enter(self.entering.popleft())
            if self.scheduler.has_work:
                self._step()
            else:
                self.now = min([until, *([self.queued[self.entering[0]]] if self.entering else [])])

    def hand(self, index: int) -> None:
        self._send(index, self.planned[index])
        self.handed.append(index)

    def in_flight(self, now: int) -> int:
        """As the router sees it at `now`: a step under way has given nothing back yet."""
        self.handed = [index for index in self.handed if not 0 <= self.ended[index] <= now]
        return len(self.handed)


def simulate_least_requests(traffic: Traffic, fleet: Fleet) -> tuple[np.ndarray, tuple[Outcome, ...]]:
    """Routing to the fewest in flight (in turn among equals), with nothing estimated."""
    replicas = [_Replica(traffic, fleet) for _ in range(fleet.replicas)]
    chosen = np.zeros(len(traffic), np.int64)
    last = fleet.replicas - 1
    for index, now in enumerate(traffic.planned_ns.tolist()):
        for replica in replicas:
            replica.advance(now)
        loads = [replica.in_flight(now) for replica in replicas]
        order = [(last + 1 + offset) % fleet.replicas for offset in range(fleet.replicas)]
        last = min(order, key=loads.__getitem__)
        replicas[last].hand(index)
        chosen[index] = last
    shares = [traffic.take(np.flatnonzero(chosen == each)) for each in range(fleet.replicas)]
    return chosen, tuple(simulate(share, fleet.server) for share in shares)
