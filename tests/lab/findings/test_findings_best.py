"""One rule for the best cell and its ties: the headline and the report's table cannot disagree."""

from __future__ import annotations

import pytest
from findings_worlds import cell, metrics, study

from headrace.lab.findings import best_cells, explain
from headrace.lab.findings.headline import choose
from headrace.lab.findings.table import build
from headrace.lab.records.results import Study
from headrace.lab.report.data import study_view


def drifting() -> Study:
    """The machine slows down from repeat to repeat, by more than the cells differ; within a repeat 128 always wins."""
    drift = (1.0, 1.3, 1.6, 1.9)
    return study(
        cell(64, *(metrics(100 * d * 1.05, mean_ttft_ms=105.0 * d) for d in drift)),
        cell(128, *(metrics(100 * d, mean_ttft_ms=100.0 * d) for d in drift)),
    )


@pytest.mark.parametrize("metric", ["output_throughput", "mean_ttft_ms"])
def test_pairs_of_repeats_tell_apart_what_drift_hides(metric: str) -> None:
    found = best_cells(build(drifting()), metric)
    assert found is not None
    assert (found.best.name, found.tied, found.within, found.basis) == ("on-128", (), None, "paired repeats")


def test_the_report_ranks_as_the_headline_does() -> None:
    world = drifting()
    choice = choose(build(world))
    assert choice is not None and choice.ties == ()
    rate = next(best for best in study_view(world, explain(world)).best if best.metric.key == choice.metric)
    assert (rate.cell.name, rate.tied) == (choice.cell.name, ())
    assert rate.tie_words == "by paired repeats (95\u00a0% interval)"


@pytest.mark.parametrize(("metric", "best"), [("output_throughput", "on-64"), ("mean_ttft_ms", "on-128")])
def test_single_runs_tie_within_the_stated_allowance(metric: str, best: str) -> None:
    near = study(
        cell(64, metrics(100.0)),
        cell(128, metrics(103.0, mean_ttft_ms=98.0)),
        cell(256, metrics(150.0, mean_ttft_ms=200.0)),
    )
    found = best_cells(build(near), metric)
    assert found is not None and found.best.name == best and found.basis == "single runs"
    assert [one.name for one in found.tied] == [{"on-64": "on-128", "on-128": "on-64"}[best]]
    assert found.within == pytest.approx(0.04)


def test_one_cell_has_no_best() -> None:
    assert best_cells(build(study(cell(64, metrics()))), "duration") is None
