"""Runs become cells: names, repeats, and what may not be compared."""

from __future__ import annotations

from headrace.lab.records.foreign import study_from_runs
from headrace.lab.records.results import CellStatus, RunResult, study_from_json, study_to_json


def run(source: str = "x", *, completed: int = 100, tokens: int = 1000, **settings: object) -> RunResult:
    settings = {"num_prompts": 100, "max_num_seqs": 64, "max_model_len": 4096, **settings}
    return RunResult(source, settings, {"completed": completed, "duration": 1.0, "total_input_tokens": tokens})


def budget(tokens: int, chunked: bool = True, **rest: object) -> RunResult:
    return run(max_num_batched_tokens=tokens, enable_chunked_prefill=chunked, **rest)  # type: ignore[arg-type]


def test_cells_over_budgets_are_named_on_and_off() -> None:
    study = study_from_runs([budget(256), budget(512), budget(4096, chunked=False)], "s", "S")
    assert [cell.name for cell in study.cells] == ["on-256", "on-512", "off-4096"]
    assert {cell.status for cell in study.cells} == {CellStatus.OK}


def test_runs_alike_are_repeats_of_one_cell() -> None:
    study = study_from_runs([budget(256, repeat=1), budget(256, repeat=2), budget(512)], "s", "S")
    assert [(cell.name, len(cell.runs)) for cell in study.cells] == [("on-256", 2), ("on-512", 1)]


def test_one_run_in_two_files_is_counted_once() -> None:
    study = study_from_runs([budget(256, source="run=0.json"), budget(256, source="summary.json#1")], "s", "S")
    (only,) = study.cells[0].runs
    assert only.warnings == ("the same figures stand in summary.json#1: counted once",)


def test_other_prompts_are_no_repeat() -> None:
    study = study_from_runs([run("a.json", tokens=1000), run("b.json", tokens=5000)], "s", "S")
    assert [cell.name for cell in study.cells] == ["a.json", "b.json"]


def test_a_cell_that_served_less_is_degraded_and_the_context_limit_named() -> None:
    runs = [budget(256, completed=30, max_model_len=256), budget(512), budget(1024)]
    cell = study_from_runs(runs, "s", "S").cells[0]
    assert (cell.status, cell.rule) == (CellStatus.DEGRADED, "R13")
    assert "70 of 100 requests were not served" in (cell.reason or "")


def test_the_context_limit_is_not_blamed_when_others_with_it_served_all() -> None:
    runs = [budget(256, completed=30), budget(512), budget(1024)]
    cell = study_from_runs(runs, "s", "S").cells[0]
    assert (cell.status, cell.rule) == (CellStatus.DEGRADED, None)
    assert "does not say why" in (cell.reason or "")


def test_a_setting_that_moved_with_the_budget_is_a_substitution() -> None:
    runs = [budget(32, max_num_seqs=32), budget(256), budget(512), budget(512, chunked=False, max_model_len=512)]
    cells = study_from_runs(runs, "s", "S").cells
    assert [cell.status.value for cell in cells] == ["substituted", "ok", "ok", "substituted"]
    assert (cells[0].rule, dict(cells[0].substituted)) == ("R2", {"max_num_seqs": (64, 32)})
    assert (cells[3].rule, dict(cells[3].substituted)) == ("R1", {"max_model_len": (4096, 512)})


def test_a_run_without_a_success_has_failed() -> None:
    assert study_from_runs([budget(256, completed=0)], "s", "S").cells[0].status is CellStatus.FAILED


def test_names_are_unique_whatever_varies() -> None:
    rates = [run(f"{n}.json", request_rate=rate) for n, rate in enumerate((1.0, 2.0, "inf", 2.5))]
    names = [cell.name for cell in study_from_runs(rates, "s", "S").cells]
    assert names == ["rate-1", "rate-2", "rate-inf", "rate-2.5"]
    twins = [run("a/r.json", tokens=10), run("b/r.json", tokens=20)]
    assert len({cell.name for cell in study_from_runs(twins, "s", "S").cells}) == 2


def test_the_study_survives_its_file() -> None:
    study = study_from_runs([budget(256), budget(512, max_num_seqs=3), budget(1024)], "s", "S")
    assert study_from_json(study_to_json(study), source="x") == study
