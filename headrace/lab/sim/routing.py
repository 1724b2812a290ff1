"""Which replica gets which request: four policies, each deciding with what a router knows when a request arrives.

A router knows what it has sent where and what of it has come back.  When answers come back is kept by a fluid of each
replica (`fluid.py`).  Routing by the times of an earlier simulation instead, in turns, was tried: the times belong to
other decisions, and the p99 of TTFT came out 15 to 35 % too high (docs/tuning.md).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from headrace.errors import ConfigError
from headrace.lab.sim.fluid import FluidReplica
from headrace.lab.sim.server import Server
from headrace.lab.sim.traffic import NS, Traffic

Ints = NDArray[np.int64]

# Above the mean by this much, a replica is too busy to take a request for its cache's sake (bounded loads:
# Mirrokni, Thorup, Zadimoghaddam 2016).  A few more cost nothing: a step computes them together.
_BOUND, _SLACK = 1.25, 4


def route(policy: str, traffic: Traffic, server: Server, replicas: int) -> Ints:
    """Each request's replica, in sending order.  Raises ConfigError for a policy that is not known."""
    if policy not in POLICIES:
        raise ConfigError(f"there is no routing {policy!r} (known: {', '.join(POLICIES)})")
    if policy == "round-robin" or replicas == 1:
        return np.arange(len(traffic), dtype=np.int64) % replicas
    choose = POLICIES[policy]
    fleet = [FluidReplica(server) for _ in range(replicas)]
    # An answer's length is not known before it is there: a router reckons with the mean.
    answer = round(float(traffic.output_tokens.mean()))
    chosen = np.zeros(len(traffic), np.int64)
    columns = zip(
        (traffic.planned_ns / NS).tolist(),
        traffic.prompt_tokens.tolist(),
        traffic.output_tokens.tolist(),
        traffic.prefix_group.tolist(),
        strict=True,
    )
    last = replicas - 1
    for index, (now, prompt, output, group) in enumerate(columns):
        for replica in fleet:
            replica.advance(now)
        last = choose(fleet, last, group)
        fleet[last].hand(prompt, output, prompt + answer)
        chosen[index] = last
    return chosen


def _in_turn(fleet: list[FluidReplica], last: int, group: int) -> int:
    return (last + 1) % len(fleet)


def _least_requests(fleet: list[FluidReplica], last: int, group: int) -> int:
    """The one with the fewest requests in flight; in turn among equals."""
    return _least([replica.requests for replica in fleet], last)


def _least_work(fleet: list[FluidReplica], last: int, group: int) -> int:
    """The one with the fewest tokens in flight: prompts as they are, answers at their mean."""
    return _least([replica.work for replica in fleet], last)


def _prefix_affinity(fleet: list[FluidReplica], last: int, group: int) -> int:
    """The home of the request's beginning, where it is computed once; the next one while that is far above the mean."""
    count = len(fleet)
    most = _BOUND * (sum(replica.requests for replica in fleet) + 1) / count + _SLACK
    replica = (group * 2_654_435_761 + 12_345) % (1 << 32) % count
    while fleet[replica].requests >= most:
        replica = (replica + 1) % count
    return replica


def _least(loads: list[int], last: int) -> int:
    least, count = min(loads), len(loads)
    return next(each % count for each in range(last + 1, last + 1 + count) if loads[each % count] == least)


POLICIES: dict[str, Callable[[list[FluidReplica], int, int], int]] = {
    "round-robin": _in_turn,
    "least-requests": _least_requests,
    "least-work": _least_work,
    "prefix-affinity": _prefix_affinity,
}
