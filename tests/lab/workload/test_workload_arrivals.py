"""Arrivals are what their name says, and the same for the same seed."""

from __future__ import annotations

import math

import pytest

from headrace.errors import ConfigError
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


@pytest.mark.parametrize(
    ("strategy", "rates"), [("linear", [2.0, 4.0, 6.0, 8.0]), ("exponential", [1.0, 2.0, 4.0, 8.0])]
)
def test_a_ramp_raises_the_rate_from_request_to_request(strategy: str, rates: list[float]) -> None:
    ramp = {"ramp_up_strategy": strategy, "ramp_up_start_rps": rates[0], "ramp_up_end_rps": rates[-1]}
    due = schedule(request_rate=math.inf, num_prompts=4, burstiness=math.inf, **ramp)
    gaps = [after - before for before, after in zip((0, *due), due, strict=False)]
    assert gaps == pytest.approx([NS / rate for rate in rates], abs=1)


def test_a_ramp_with_poisson_gaps_takes_the_time_that_its_rates_imply() -> None:
    ramp = {"ramp_up_strategy": "linear", "ramp_up_start_rps": 10.0, "ramp_up_end_rps": 30.0}
    due = schedule(request_rate=math.inf, **ramp)
    assert due[-1] / NS == pytest.approx(4000 * math.log(3) / 20, rel=0.05)  # the mean of 1/r over 10 to 30
    assert audit_arrivals(due).gap_cv == pytest.approx(1.05, abs=0.15)


def test_a_ramp_is_an_open_loop_even_with_a_limit_and_its_digest_is_its_own() -> None:
    ramp = WorkloadSpec(max_concurrency=4, ramp_up_strategy="linear", ramp_up_start_rps=1.0, ramp_up_end_rps=2.0)
    assert not ramp.closed_loop and WorkloadSpec(max_concurrency=4).closed_loop
    assert WorkloadSpec.from_mapping(ramp.to_json()) == ramp
    assert ramp.digest() != WorkloadSpec(max_concurrency=4).digest()


@pytest.mark.parametrize(
    "wrong",
    [
        {"ramp_up_strategy": "linear"},
        {"ramp_up_end_rps": 2.0},
        {"ramp_up_strategy": "linear", "ramp_up_start_rps": 2.0, "ramp_up_end_rps": 1.0},
        {"ramp_up_strategy": "linear", "ramp_up_start_rps": 0.0, "ramp_up_end_rps": 1.0},
        {"ramp_up_strategy": "linear", "ramp_up_start_rps": 1.0, "ramp_up_end_rps": 2.0, "request_rate": 3.0},
    ],
)
def test_a_ramp_that_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"ramp|request_rate"):
        WorkloadSpec(**wrong)  # type: ignore[arg-type]
