"""Tuning through the real campaign: only chosen cells are measured, and their runs are kept like any others."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from campaign_world import Silent, World

from headrace.lab.campaign.execute import run_campaign
from headrace.lab.sim.slo import Slo
from headrace.lab.tuner.campaign import tune_plan
from headrace.lab.tuner.objective import Objective
from headrace.lab.tuner.words import sentences

SEATS = [1, 2, 4, 8, 16, 32, 64]


def test_only_chosen_cells_are_measured_and_all_else_stays_pending(tmp_path: Path) -> None:
    world = World(tmp_path / "out")
    lines: list[str] = []
    answer = tune_plan(
        world.plan(SEATS),
        world.plan_text(SEATS),
        world.out,
        Objective("request_goodput", slo=Slo(ttft_ms=60_000)),
        reporter=Silent(),
        most=2,
        run=partial(run_campaign, launcher=world.launcher()),
        told=lines.append,
    )
    measured = {run["cell"] for run in answer["runs"]}
    assert 1 <= len(answer["runs"]) <= 2 and answer["cells"] == 7
    assert {path.name for path in (world.out / "cells").iterdir()} == measured
    assert answer["best"] in measured and answer["score"] > 0
    assert set(answer["flags"]) == {"max-num-seqs"}
    assert len(answer["expected"]) == 7
    assert f"measuring {answer['runs'][0]['cell']}" in lines
    assert any(line.startswith(f"Use {answer['best']}") for line in sentences(answer))


def test_the_same_command_goes_on_with_the_runs_that_are_there(tmp_path: Path) -> None:
    world = World(tmp_path / "out")

    def tune(reporter: Silent) -> None:
        tune_plan(
            world.plan(SEATS),
            world.plan_text(SEATS),
            world.out,
            Objective(),
            reporter=reporter,
            most=1,
            run=partial(run_campaign, launcher=world.launcher()),
        )

    first, second = Silent(), Silent()
    tune(first)
    tune(second)
    assert len(first.started) == 1 and second.started == []
