"""The largest rate that a server sustains under an objective, and how many replicas a rate needs; with intervals.

Every probe is decided by an interval over seeds, not by one run: at moderate load a p99 moves by a factor of two with
the luck of arrivals.  A probe that a few more seeds cannot decide is left undecided, and the answer is a range.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

from headrace.errors import ConfigError
from headrace.lab.sim.demand import Demand
from headrace.lab.sim.fleet import Fleet, simulate_fleet
from headrace.lab.sim.server import Server
from headrace.lab.sim.simulate import simulate
from headrace.lab.sim.slo import Slo, meets
from headrace.lab.sim.spread import Spread

CONFIDENCE = 0.90
# Fleets beyond this are simulated as a slice at their share of the rate: with so many to choose from, more change
# nothing that can be measured (docs/tuning.md).
SLICE = 64


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is simulated.

    requests   of each run of one replica; runs of fleets have as many for each replica
    seeds      of every probe to begin with, and at most when it stays undecided
    probes     bisection steps
    """

    requests: int = 1000
    seeds: tuple[int, int] = (4, 12)
    probes: int = 8


QUICK = Effort(seeds=(1, 1))


class Share(NamedTuple):
    """Share of requests within the objective over some seeds: mean, and the ends of its interval."""

    mean: float
    low: float
    high: float
    seeds: int


@dataclass(frozen=True, slots=True)
class Capacity:
    """Requests a second of one replica: `low` is met with confidence, `high` is not met; `rate` lies between.

    saturation   requests/s with all of them waiting at once: no objective is met beyond it
    """

    low: float
    rate: float
    high: float
    saturation: float


def capacity(server: Server, demand: Demand, slo: Slo, effort: Effort = QUICK) -> Capacity:
    """Bisect the rate between nothing and saturation, with the same requests at every rate."""
    saturated = simulate(demand.draw(math.inf, effort.requests, 0), server)
    completed = int(saturated.served.sum())
    limit = completed / saturated.duration_s if completed else 0.0
    if not limit:
        return Capacity(0.0, 0.0, 0.0, 0.0)
    shares: dict[float, Share] = {}

    def share(rate: float) -> Share:
        if rate not in shares:
            shares[rate] = _share_at(server, demand, slo, rate, effort)
        return shares[rate]

    top = 1.05 * limit
    low = _bisect(lambda rate: share(rate).low >= slo.share, top, effort.probes)
    if effort.seeds[1] == 1:
        return Capacity(low[0], sum(low) / 2, low[1], limit)
    middle = _bisect(lambda rate: share(rate).mean >= slo.share, top, effort.probes)
    high = _bisect(lambda rate: share(rate).high >= slo.share, top, effort.probes)
    return Capacity(low[0], sum(middle) / 2, high[1], limit)


def capacities(
    servers: Sequence[Server], demand: Demand, slo: Slo, effort: Effort = QUICK, spread: Spread | None = None
) -> list[Capacity]:
    """The capacity of each of many cells, spread over whatever `spread` spreads over."""
    tasks = [(server, demand, slo, effort) for server in servers]
    return spread(_capacity_of, tasks) if spread is not None else [_capacity_of(task) for task in tasks]


def _capacity_of(task: tuple[Server, Demand, Slo, Effort]) -> Capacity:
    return capacity(*task)


def _bisect(holds: Callable[[float], bool], top: float, probes: int) -> tuple[float, float]:
    low, high = 0.0, top
    for _ in range(probes):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low, high


def _share_at(server: Server, demand: Demand, slo: Slo, rate: float, effort: Effort) -> Share:
    found: list[float] = []
    least, most = effort.seeds
    for seed in range(1, most + 1):
        found.append(float(meets(simulate(demand.draw(rate, effort.requests, seed), server), slo).mean()))
        if seed >= least and _is_decided(interval(found), slo.share):
            break
    return interval(found)


def interval(shares: Sequence[float]) -> Share:
    """Mean and its interval over seeds by Student's t; one seed is taken at its word."""
    values = np.asarray(shares, float)
    mean = float(values.mean())
    if len(values) < 2:
        return Share(mean, mean, mean, len(values))
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    return Share(mean, max(0.0, mean - half), min(1.0, mean + half), len(values))


def _is_decided(share: Share, bound: float) -> bool:
    return share.low >= bound or share.high < bound


@dataclass(frozen=True, slots=True)
class Probe:
    """One simulation of a fleet, as a task for another process."""

    fleet: Fleet
    demand: Demand
    slo: Slo
    rate: float
    requests: int
    seed: int


def run_probe(probe: Probe) -> float:
    """The share of requests within the objective; a fleet beyond SLICE replicas stands for itself as a slice."""
    fleet, rate = probe.fleet, probe.rate
    if fleet.replicas > SLICE:
        rate *= SLICE / fleet.replicas
        fleet = Fleet(fleet.server, SLICE, fleet.routing)
    traffic = probe.demand.draw(rate, probe.requests * fleet.replicas, probe.seed)
    return simulate_fleet(traffic, fleet).share(probe.slo)


@dataclass(frozen=True, slots=True)
class Replicas:
    """How many replicas a rate needs.

    few, enough     the largest number that fails and the smallest that meets the objective, both with confidence
    share           at `enough`; when one of its replicas is lost: `without_one`
    tried           number -> share
    """

    rate: float
    few: int
    enough: int
    share: Share
    without_one: Share
    tried: dict[int, Share]


def replicas_for(
    rate: float,
    server: Server,
    demand: Demand,
    slo: Slo,
    *,
    routing: str = "least-requests",
    effort: Effort | None = None,
    most: int = 100_000,
    spread: Spread | None = None,
) -> Replicas:
    """The smallest fleet that meets the objective at `rate` requests a second.

    Raises ConfigError when even one request at a time misses it, or more than `most` replicas would be needed.
    """
    effort = effort or Effort()
    spread = spread or (lambda work, tasks: [work(task) for task in tasks])
    one = capacity(server, demand, slo, QUICK)
    if not one.low:  # not even at a 256th of what saturates it
        raise ConfigError(f"no rate meets the objective ({slo}): even a lone replica at a low rate misses it")
    tried: dict[int, Share] = {}

    def share(replicas: int) -> Share:
        if replicas not in tried:
            tried[replicas] = _fleet_share(replicas, rate, server, demand, slo, routing, effort, spread)
        return tried[replicas]

    # Upwards from what one replica's capacity suggests until it is surely enough, then back by bisection.
    few, enough = 0, max(1, math.ceil(rate / one.high))
    while share(enough).low < slo.share:
        few, enough = enough, max(enough + 1, math.ceil(enough * 1.15))
        if enough > most:
            raise ConfigError(f"more than {most} replicas would be needed for {rate:g} requests/s under {slo}")
    few = few or max(0, math.floor(rate / (1.05 * one.saturation)))
    while enough - few > 1:
        middle = (few + enough) // 2
        few, enough = (few, middle) if share(middle).low >= slo.share else (middle, enough)
    # `few` may be undecided rather than failing: the range tells it.
    surely = 0
    while few - surely > 1 and share(few).high >= slo.share:
        middle = (surely + few) // 2 if few - surely > 4 else few - 1
        surely, few = (middle, few) if share(middle).high < slo.share else (surely, middle)
    if share(few).high >= slo.share if few else False:
        few = surely
    return Replicas(rate, few, enough, share(enough), share(max(1, enough - 1)), dict(sorted(tried.items())))


def _fleet_share(
    replicas: int,
    rate: float,
    server: Server,
    demand: Demand,
    slo: Slo,
    routing: str,
    effort: Effort,
    spread: Spread,
) -> Share:
    least, most = effort.seeds
    found: list[float] = []
    while len(found) < most:
        seeds = range(len(found) + 1, len(found) + 1 + (least if not found else max(1, least // 2)))
        fleet = Fleet(server, replicas, routing)
        # A fleet of hundreds averages over its replicas: fewer requests for each give the same certainty.
        requests = max(300, effort.requests // min(replicas, 4))
        found += spread(run_probe, [Probe(fleet, demand, slo, rate, requests, seed) for seed in seeds])
        if _is_decided(interval(found), slo.share):
            break
    return interval(found)
