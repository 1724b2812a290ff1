"""Arrivals are what their name says, and the same for the same seed."""

from __future__ import annotations

import math

import pytest

from headrace.lab.workload.arrivals import NS, arrival_schedule, audit_arrivals
from headrace.lab.workload.spec import WorkloadSpec


def schedule(**changes: object) -> tuple[int, ...]:
    return arrival_schedule(WorkloadSpec(**{"num_prompts": 4000, "request_rate": 20.0} | changes))  # type: ignore[arg-type]


def test_an_infinite_rate_is_all_at_once() -> None:
    assert schedule(request_rate=math.inf, num_prompts=5) == (0, 0, 0, 0, 0)


def test_poisson_has_the_rate_and_the_variance_of_poisson() -> None:
    audit = audit_arrivals(schedule())
    assert audit.rate_rps == pytest.approx(20, rel=0.05)
    assert audit.gap_cv == pytest.approx(1, abs=0.1)
    assert audit.index_of_dispersion == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize(("burstiness", "low", "high"), [(0.25, 2.5, 6.0), (4.0, 0.1, 0.5), (math.inf, 0.0, 0.01)])
def test_below_one_is_burstier_above_one_is_smoother(burstiness: float, low: float, high: float) -> None:
    audit = audit_arrivals(schedule(burstiness=burstiness))
    assert audit.index_of_dispersion is not None and low <= audit.index_of_dispersion <= high


def test_constant_gaps() -> None:
    times = schedule(burstiness=math.inf, num_prompts=3, request_rate=2.0)
    assert times == (NS // 2, NS, 3 * NS // 2)


def test_a_true_poisson_process_does_not_end_on_the_dot_and_vllms_rescaled_one_does() -> None:
    ends = {schedule(seed=seed, num_prompts=100)[-1] for seed in range(5)}
    assert len(ends) == 5
    rescaled = {schedule(seed=seed, num_prompts=100, arrival_rescale=True)[-1] for seed in range(5)}
    assert rescaled == {5 * NS}


def test_the_seed_decides_and_the_dataset_does_not() -> None:
    assert schedule(seed=1) == schedule(seed=1) != schedule(seed=2)
    assert schedule(dataset_name="random") == schedule(dataset_name="conversation")
    assert list(schedule()) == sorted(schedule())


def test_too_few_times_give_no_audit() -> None:
    assert audit_arrivals([5]).rate_rps is None
    assert audit_arrivals([0, 0, 0]).rate_rps is None
    assert audit_arrivals([NS, 2 * NS]).index_of_dispersion is None
