"""Shapes over an ordered factor, and when a difference is one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from findings_worlds import cell, metrics

from headrace.lab.findings.shapes import Segment, shape_of
from headrace.lab.findings.stats import ONE_RUN_ALLOWANCE, allowance, ratio

TOLERANCE = 0.04


@pytest.mark.parametrize(
    ("values", "segments", "plateau"),
    [
        ([100, 101, 102], [], 0),
        ([100, 80, 60, 60, 61], [(0, 2, -1)], 2),
        ([10, 20, 30, 20, 20, 20], [(0, 2, 1), (2, 3, -1)], 3),
        ([10, 20, 40, 80], [(0, 3, 1)], None),
        ([10, 20, 30, 30], [(0, 3, 1)], None),  # two alike are no plateau
        ([100, 97, 110], [(0, 2, 1)], None),  # a wiggle within the tolerance is no turn
        ([100, 103, 106, 109, 112], [(0, 2, 1)], 2),  # a slow drift is one, although every step is small
        ([10, 5, 10, 5], [(0, 1, -1), (1, 2, 1), (2, 3, -1)], None),
    ],
)
def test_shapes(values: list[float], segments: list[tuple[int, int, int]], plateau: int | None) -> None:
    shape = shape_of(values, TOLERANCE if values[1] != 103 else 0.06)
    assert shape.segments == tuple(Segment(*segment) for segment in segments)
    assert shape.plateau == plateau


def test_single_runs_have_the_stated_allowance() -> None:
    a, b = cell(64, metrics(100.0)), cell(128, metrics(100.0 * (1 + ONE_RUN_ALLOWANCE) - 0.01))
    assert allowance("duration", [a, b]) == pytest.approx(ONE_RUN_ALLOWANCE)
    found = ratio("duration", a, b)
    assert found is not None
    assert (found.basis, found.distinct) == ("single runs", False)
    wider = ratio("p99_tpot_ms", cell(64, metrics(p99_tpot_ms=30.0)), cell(128, metrics(p99_tpot_ms=36.0)))
    assert wider is not None
    assert not wider.distinct  # 20 %: within what a p99 scatters


def test_a_busy_neighbour_widens_the_allowance() -> None:
    """A run that had half of the machine may be twice as slow for that alone, so 60 % slower says nothing."""
    alone = cell(64, metrics(100.0))
    beside = cell(128, metrics(160.0))
    beside = replace(beside, runs=(replace(beside.runs[0], settings={"foreign_cpu_share": 0.5}),))
    found = ratio("duration", alone, beside)
    assert found is not None and not found.distinct
    assert allowance("duration", [alone, beside]) == pytest.approx(2 * (1 + ONE_RUN_ALLOWANCE) - 1)
    assert allowance("duration", [alone, alone]) == pytest.approx(ONE_RUN_ALLOWANCE)


def test_repeats_decide_by_their_own_spread() -> None:
    def noisy(budget: int, centre: float, spread: float) -> object:
        return cell(budget, *[metrics(centre * (1 + spread * step)) for step in (-1, 0, 1)])

    quiet = ratio("duration", noisy(64, 100, 0.001), noisy(128, 103, 0.001))  # type: ignore[arg-type]
    loud = ratio("duration", noisy(64, 100, 0.05), cell(128, *[metrics(v) for v in (111.0, 100.0, 99.0)]))  # type: ignore[arg-type]
    assert quiet is not None
    assert loud is not None
    assert (quiet.distinct, loud.distinct) == (True, False)
    assert quiet.value == pytest.approx(1.03)


def test_a_ratio_and_its_inverse_mirror_each_other() -> None:
    a, b = cell(64, metrics(100.0), metrics(101.0)), cell(128, metrics(110.0), metrics(112.0))
    there, back = ratio("duration", a, b), ratio("duration", b, a)
    assert there is not None
    assert back is not None
    assert there.value * back.value == pytest.approx(1)
    assert there.low * back.high == pytest.approx(1)


def test_no_ratio_without_the_metric_or_with_a_zero() -> None:
    assert ratio("duration", cell(64, metrics(mean_itl_ms=0.0)), cell(128, {})) is None
    assert ratio("mean_itl_ms", cell(64, metrics(mean_itl_ms=0.0)), cell(128, metrics())) is None
