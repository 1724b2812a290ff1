"""Runs that their own client calls INVALID: never compared, never recommended, always named."""

from __future__ import annotations

from findings_worlds import cell, findings, invalid, metrics, study

from headrace.lab.findings.table import build
from headrace.lab.records.results import study_from_json, study_to_json


def test_a_cell_of_invalid_runs_is_left_out_and_not_recommended() -> None:
    world = study(cell(64, metrics(100.0)), cell(128, metrics(90.0)), invalid(cell(256, metrics(20.0)), 0))
    found = findings(world)
    assert "256" not in found["headline"].claim and found["headline"].cells[0] == "on-128"
    assert found["comparability.left-out"].claim == (
        "1 cell left out of all comparisons: on-256 (its run is INVALID: the client could not keep the schedule)."
    )
    assert all("on-256" not in one.cells for one in found.values() if one.topic != "comparability")


def test_only_the_valid_repeats_of_a_cell_count() -> None:
    noisy = invalid(cell(128, metrics(10.0), metrics(90.0), metrics(90.0)), 0)
    world = study(cell(64, metrics(90.0), metrics(90.0), metrics(90.0)), noisy)
    assert [len(one.runs) for one in build(world).cells] == [3, 2]
    found = findings(world)
    assert found["headline"].claim.startswith("No setting is better than another")
    assert found["comparability.invalid-runs"].claim == (
        "1 run is INVALID and not counted: on-128 run 0 (the client could not keep the schedule)."
    )


def test_nothing_but_invalid_runs_is_said_as_that() -> None:
    world = study(*(invalid(cell(budget, metrics()), 0) for budget in (64, 128)))
    assert findings(world)["headline"].claim == "No cell can be compared: the runs of on-64 and on-128 are INVALID."


def test_one_valid_cell_is_not_called_a_stranger_of_the_invalid_one() -> None:
    claim = findings(study(cell(64, metrics()), invalid(cell(128, metrics()), 0)))["headline"].claim
    assert claim.startswith("Of 2 cells only one could be measured, so there is nothing to compare. on-64: ")


def test_the_verdict_survives_the_study_file() -> None:
    world = study(invalid(cell(64, metrics(), metrics()), 1))
    again = study_from_json(study_to_json(world), source="a file")
    assert again == world and [run.invalid for run in again.cells[0].runs] == [False, True]
