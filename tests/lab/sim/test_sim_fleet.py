"""Fleets: routing against stepped replicas, shares of a joint objective, and searches that answer with a range."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
from fleet_twin import simulate_least_requests

from headrace.core.state import SchedulerConfig
from headrace.errors import ConfigError
from headrace.lab.sim import Server, StepCost, Traffic, simulate
from headrace.lab.sim.capacity import Effort, capacity, interval, replicas_for
from headrace.lab.sim.demand import Demand
from headrace.lab.sim.fleet import Fleet, FleetOutcome, simulate_fleet
from headrace.lab.sim.routing import route
from headrace.lab.sim.slo import Slo, meets, parse_slo
from headrace.lab.sim.spread import spread_over

SERVER = Server(
    SchedulerConfig(
        policy="v1",
        max_num_batched_tokens=256,
        max_num_seqs=16,
        max_model_len=1024,
        block_size=16,
        num_blocks=1024,
    ),
    StepCost(base_s=0.01, token_s=1e-4),
)
SLO = Slo(ttft_ms=500, tpot_ms=30, share=0.95)


def demand(prompt: int = 60, output: int = 20, groups: int = 0) -> Demand:
    rng = np.random.default_rng(1)
    count = 200
    return Demand(
        Traffic(
            np.zeros(count, np.int64),
            rng.integers(prompt // 2, prompt * 2, count),
            rng.integers(output // 2, output * 2, count),
        ),
        prefix_groups=groups,
    )


def test_the_same_seed_gives_the_same_requests_at_every_rate() -> None:
    slow, fast = demand().draw(1, 50, 7), demand().draw(10, 50, 7)
    assert (slow.prompt_tokens == fast.prompt_tokens).all()
    assert np.allclose(slow.planned_ns, 10 * fast.planned_ns, atol=10)
    assert (demand().draw(float("inf"), 5, 1).planned_ns == 0).all()


def test_a_request_meets_all_bounds_or_none_count() -> None:
    outcome = simulate(demand().draw(30, 60, 1), SERVER)
    both = meets(outcome, SLO)
    assert (both == (meets(outcome, Slo(ttft_ms=500)) & meets(outcome, Slo(tpot_ms=30)))).all()
    assert meets(outcome, Slo()).all() and not meets(outcome, Slo(e2el_ms=0.001)).any()
    assert parse_slo(["ttft:500", "tpot:30"], 0.95) == SLO


def test_round_robin_takes_turns_and_least_requests_evens_out() -> None:
    traffic = demand().draw(100, 90, 1)
    assert route("round-robin", traffic, SERVER, 3).tolist() == [0, 1, 2] * 30
    for policy in ("least-requests", "least-work"):
        chosen = route(policy, traffic, SERVER, 3)
        assert np.bincount(chosen, minlength=3).min() > 20
    with pytest.raises(ConfigError, match="no routing 'best'"):
        route("best", traffic, SERVER, 3)


def test_one_beginning_has_one_home_until_it_is_too_busy() -> None:
    calm = route("prefix-affinity", demand(groups=4).draw(2, 60, 1), SERVER, 4)
    groups = demand(groups=4).draw(2, 60, 1).prefix_group
    assert all(len(set(calm[groups == group])) == 1 for group in range(4))
    busy = route("prefix-affinity", demand(groups=1).draw(500, 200, 1), SERVER, 4)
    assert len(set(busy.tolist())) >= 3


def test_the_fluid_router_agrees_with_stepped_replicas() -> None:
    """Which replica is a matter of chance among equals; what the requests experience is not."""
    fleet = Fleet(SERVER, 3, "least-requests")
    exact, ours = [], []
    for seed in range(3):
        traffic = demand().draw(90, 200, seed)
        chosen, parts = simulate_least_requests(traffic, fleet)
        twin, fast = FleetOutcome(traffic, chosen, parts), simulate_fleet(traffic, fleet)
        exact.append(np.mean(np.concatenate([part.e2e_s for part in twin.parts])))
        ours.append(np.mean(np.concatenate([part.e2e_s for part in fast.parts])))
        assert fast.share(SLO) == pytest.approx(twin.share(SLO), abs=0.03)
    assert np.mean(ours) == pytest.approx(np.mean(exact), rel=0.03)


def test_every_request_is_served_once() -> None:
    traffic = demand().draw(80, 120, 3)
    outcome = simulate_fleet(traffic, Fleet(SERVER, 4))
    assert sum(len(part.traffic) for part in outcome.parts) == 120
    assert sum(int(part.served.sum()) for part in outcome.parts) == 120
    assert outcome.imbalance < 1.3


def test_capacity_lies_below_saturation_and_holds() -> None:
    found = capacity(SERVER, demand(), SLO, Effort(requests=200, seeds=(3, 6), probes=6))
    assert 0 < found.low <= found.rate <= found.high <= 1.05 * found.saturation
    shares = [meets(simulate(demand().draw(0.95 * found.low, 200, seed), SERVER), SLO).mean() for seed in range(5)]
    assert np.mean(shares) >= SLO.share


def test_more_requests_need_more_replicas_and_one_less_is_told() -> None:
    effort = Effort(requests=200, seeds=(3, 6), probes=6)
    one = capacity(SERVER, demand(), SLO, effort)
    need = replicas_for(3.5 * one.rate, SERVER, demand(), SLO, effort=effort)
    assert 3 <= need.enough <= 6 and need.few < need.enough
    assert need.share.low >= SLO.share
    assert need.without_one.mean <= need.share.mean + 0.01
    with pytest.raises(ConfigError, match="even a lone replica"):
        replicas_for(1, SERVER, demand(), Slo(ttft_ms=0.01, share=0.9), effort=effort)


def test_an_interval_needs_more_than_one_seed() -> None:
    assert interval([0.9]) == (0.9, 0.9, 0.9, 1)
    low, high = interval([0.90, 0.92, 0.91])[1:3]
    assert low < 0.91 < high


def test_work_is_spread_over_processes_in_order() -> None:
    with spread_over("here") as spread:
        assert spread(abs, [-1, 2, -3]) == [1, 2, 3]
    with spread_over("2") as spread:
        assert spread(abs, [-1, 2, -3]) == [1, 2, 3]
    with pytest.raises(ConfigError, match="not 'everywhere'"), spread_over("everywhere"):
        pass


def test_ray_is_asked_only_when_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'headrace\[ray\]'"), spread_over("ray"):
        pass
    calls: list[str] = []

    class Remote:
        def __init__(self, function: object) -> None:
            self.function = function

        def remote(self, work: object, task: object) -> object:
            assert callable(self.function)
            return self.function(work, task)

    fake = types.SimpleNamespace(
        is_initialized=lambda: False,
        init=lambda **options: calls.append(f"init {options['address']}"),
        remote=Remote,
        get=lambda references: references,
        shutdown=lambda: calls.append("shutdown"),
    )
    monkeypatch.setitem(sys.modules, "ray", fake)
    with spread_over("ray:10.0.0.1:6379") as spread:
        assert spread(abs, [-1, 2]) == [1, 2]
    assert calls == ["init 10.0.0.1:6379", "shutdown"]
