"""What the report shows of runs that do not count."""

from __future__ import annotations

from dataclasses import replace

from report_worlds import measured, study

from headrace.lab.findings import explain
from headrace.lab.records.results import Cell, Level, RunVerdict
from headrace.lab.report.data import study_view
from headrace.lab.report.page import page_html

LATE = RunVerdict(Level.INVALID, ("the client could not keep the schedule.",))


def spoil(cell: Cell, *indices: int) -> Cell:
    return replace(
        cell, runs=tuple(replace(run, verdict=LATE) if n in indices else run for n, run in enumerate(cell.runs))
    )


def test_invalid_repeats_do_not_move_a_cells_figures_and_are_listed() -> None:
    world = study(measured(128, repeats=3), spoil(measured(256, repeats=3), 2), spoil(measured(512), 0))
    view = study_view(world, explain(world))
    cells = {cell.name: cell for cell in view.cells}
    assert cells["on-256"].n_runs == 2 and cells["on-256"].comparable
    assert cells["on-256"].values["duration"].runs == tuple(r.metrics["duration"] for r in world.cells[1].runs[:2])
    assert cells["on-256"].warnings == ("not counted, INVALID: runs/on-256/2: the client could not keep the schedule",)
    assert cells["on-512"].left_out == "its run is INVALID: the client could not keep the schedule"
    assert "2 runs INVALID: not counted." in view.banner.reasons
    assert "on-512" not in {one.name for best in view.best for one in (best.cell, *best.tied)}
    assert "its run is INVALID" in page_html((view,))
