"""What a sample proves of a percentile: LoadGen's figures, and coverage over a thousand runs."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.lab.metrics.certify import (
    certified,
    effective_size,
    highest_samples,
    mean_interval,
    percentile_interval,
    smallest_sample,
)
from headrace.lab.metrics.user_view import goodput_share, user_view
from headrace.lab.records.schema import ChunkStamp, RequestRecord


@pytest.mark.parametrize(
    ("percentile", "smallest"), [(50, 11), (75, 24), (80, 31), (90, 64), (95, 130), (97, 219), (99, 662), (99.9, 6636)]
)
def test_the_smallest_sample_is_loadgens(percentile: float, smallest: int) -> None:
    assert smallest_sample(percentile) == smallest
    assert highest_samples(smallest, percentile) == 1 and highest_samples(smallest - 1, percentile) == 0


def test_golden_ranks() -> None:
    assert highest_samples(10_000, 99) == 77
    assert [highest_samples(1000, p) for p in (99, 95, 90)] == [2, 34, 78]


def test_a_certified_p99_is_above_the_true_one() -> None:
    rng = np.random.default_rng(1)
    true = float(-np.log(0.01))
    held = sum((certified(rng.exponential(size=1000), 99) or 0.0) >= true for _ in range(1000))
    assert held >= 985


def test_an_interval_of_a_percentile_holds_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    found = [percentile_interval(rng.exponential(size=200), 90) for _ in range(500)]
    true = float(-np.log(0.1))
    assert sum(one is not None and one.low <= true <= one.high for one in found) >= 470
    assert percentile_interval([1.0] * 20, 99) is None


def test_correlated_values_are_worth_less() -> None:
    rng = np.random.default_rng(3)
    noise = rng.normal(size=2000)
    walk = np.convolve(noise, np.ones(10) / 10, "valid")
    assert effective_size(noise) > 1500 and effective_size(walk) < 300
    independent, correlated = mean_interval(noise), mean_interval(walk)
    assert independent is not None and independent.low < 0 < independent.high
    assert correlated is not None and mean_interval([1.0, 2.0]) is None


def answer(index: int, ttft_ms: float, error: str | None = None) -> RequestRecord:
    first = round(ttft_ms * 1e6)
    chunks = [] if error else [ChunkStamp(first, "content"), ChunkStamp(first + 1_000_000, "content")]
    return RequestRecord(index, 0, chunks=chunks, output_tokens_server=2, error_class=error)


def test_users_see_what_a_sample_can_prove() -> None:
    ttft = user_view([answer(i, 10 + i) for i in range(100)])[0]
    assert (ttft.name, ttft.samples) == ("TTFT", 100)
    median, p90, p99 = ttft.quantiles
    assert median.bound is not None and p90.bound is not None and p90.bound >= p90.value
    assert p99.bound is None and p99.needs == 662


def test_failures_stay_in_goodputs_denominator() -> None:
    records = [answer(0, 10), answer(1, 500), answer(2, 10, "timeout"), answer(3, 20)]
    assert goodput_share(records, {"ttft": 100}) == 0.5 and goodput_share([], {"ttft": 100}) is None
