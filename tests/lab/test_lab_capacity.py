"""The largest rate under a service level: bounds that hold as often as they promise."""

from __future__ import annotations

import math
import random

import pytest

from headrace.lab.capacity import Capacity, Search, runs_to_confirm


def server(limit: float, steepness: float, seed: int) -> Search:
    """Runs keep the level with a probability that falls through one half at `limit`."""
    draw = random.Random(seed)

    def trial(rate: float) -> bool:
        return draw.random() < 1 / (1 + math.exp(steepness * math.log(rate / limit)))

    return Search(trial, start=1.0, least=0.05, most=1000.0)


def test_a_sharp_limit_is_found_between_its_bounds() -> None:
    tried: list[float] = []

    def trial(rate: float) -> bool:
        tried.append(rate)
        return rate <= 7.3

    found = Search(trial, start=1.0, least=0.05, most=1000.0).run()
    assert found.at_least is not None and found.at_most is not None
    assert found.at_least <= 7.3 < found.at_most <= 1.11 * found.at_least
    assert found.passed(found.at_least)[0] >= runs_to_confirm(0.95) == 6
    assert len(tried) == len(found.trials) <= 25


@pytest.mark.parametrize("steepness", [8, 15, 40])
def test_the_true_limit_lies_between_the_bounds(steepness: float) -> None:
    """100 searches each, of servers near whose limit a run may go either way."""
    outside = 0
    for seed in range(100):
        limit = random.Random(1000 + seed).uniform(2, 40)
        found = server(limit, steepness, seed).run()
        outside += found.at_least is not None and found.at_least > limit
        outside += found.at_most is not None and found.at_most < limit
    assert outside <= 5


@pytest.mark.parametrize(
    ("limit", "bounds"), [(5000.0, (1000.0, None)), (0.001, (None, 0.05))], ids=["never reached", "always exceeded"]
)
def test_a_limit_outside_of_the_rates_that_may_be_tried(limit: float, bounds: tuple[float | None, ...]) -> None:
    found = Search(lambda rate: rate <= limit, start=1.0, least=0.05, most=1000.0).run()
    assert (found.at_least, found.at_most) == bounds


def test_runs_that_are_spent_leave_a_bound_open() -> None:
    found = Search(lambda rate: rate <= 7, start=1.0, least=0.1, most=100.0, max_runs=12).run()
    assert found.at_least is None and found.at_most is None and len(found.trials) == 12
    assert isinstance(found, Capacity)
