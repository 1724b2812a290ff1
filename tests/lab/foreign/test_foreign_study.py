"""Runs become cells: names, repeats, and what may not be compared."""

from __future__ import annotations

import pytest

from headrace.lab.records.foreign import study_from_runs
from headrace.lab.records.results import CellStatus, RunResult, study_from_json, study_to_json


def run(
    source: str = "x",
    *,
    completed: int = 100,
    tokens: int = 1000,
    seconds: float = 1.0,
    output: float = 1.0,
    **settings: object,
) -> RunResult:
    settings = {"num_prompts": 100, "max_num_seqs": 64, "max_model_len": 4096, **settings}
    metrics = {"completed": completed, "duration": seconds, "total_input_tokens": tokens, "total_output_tokens": output}
    return RunResult(source, settings, metrics)


def budget(tokens: int, chunked: bool = True, **rest: object) -> RunResult:
    return run(max_num_batched_tokens=tokens, enable_chunked_prefill=chunked, **rest)  # type: ignore[arg-type]


def test_cells_over_budgets_are_named_on_and_off() -> None:
    study = study_from_runs([budget(256), budget(512), budget(4096, chunked=False)], "s", "S")
    assert [cell.name for cell in study.cells] == ["on-256", "on-512", "off-4096"]
    assert {cell.status for cell in study.cells} == {CellStatus.OK}


def test_runs_numbered_in_their_file_are_repeats_of_one_cell() -> None:
    study = study_from_runs([budget(256, repeat=1), budget(256, repeat=2), budget(512)], "s", "S")
    assert [(cell.name, len(cell.runs)) for cell in study.cells] == [("on-256", 2), ("on-512", 1)]


@pytest.mark.parametrize("name", ["run={}", "rate4-run{}", "rep_0{}", "rate4.repeat-{}", "trial{}_rate4"])
def test_runs_numbered_by_their_names_are_repeats_of_one_cell(name: str) -> None:
    one, other = (f"a/{name.format(number)}.log" for number in (1, 2))
    (cell,) = study_from_runs([run(one), run(other, output=2)], "s", "S").cells
    assert len(cell.runs) == 2


@pytest.mark.parametrize(
    ("one", "other", "labels"),
    [
        ("a100/rate1.log", "tpu/rate1.log", ("a100", "tpu")),  # one client, two machines
        ("a100/run1.log", "tpu/run2.log", ("run1", "run2")),
        ("x/cpu_offload.log", "x/uvm.log", ("cpu_offload", "uvm")),  # two arms of an experiment
        ("page.md#1", "page.md#18", ("#1", "#18")),  # a page tells several stories
        ("x/m-20260101-000000.json", "x/m-20260101-000100.json", ("m-20260101-000000", "m-20260101-000100")),
        ("x/a_rep1.log", "x/b_rep2.log", ("a_rep1", "b_rep2")),
        ("p/q/r.log", "p/s/r.log", ("q", "s")),
        ("r.log", "r.json", ("r.log", "r.json")),
    ],
)
def test_equal_settings_alone_are_no_repeat(one: str, other: str, labels: tuple[str, str]) -> None:
    third = run("other.log", request_rate=2.0)
    study = study_from_runs([run(one, request_rate=1.0), third, run(other, output=2, request_rate=1.0)], "s", "S")
    names = [cell.name for cell in study.cells]
    assert names == [f"rate-1 ({labels[0]})", f"rate-1 ({labels[1]})", "rate-2"]


def test_repeats_that_contradict_each_other_are_split_and_say_so() -> None:
    runs = [run("x/a_run1.log"), run("x/a_run2.log", seconds=1.2), run("x/a_run3.log", seconds=1.4)]
    one, other = study_from_runs(runs, "s", "S").cells
    assert [(one.name, len(one.runs)), (other.name, len(other.runs))] == [("a", 2), ("a_run3", 1)]
    assert other.runs[0].warnings == (
        "not averaged with a_run1.log, which is numbered as a repeat of it: duration 1.4 s here, 1 s there",
    )
    assert "duration 1 s here, 1.4 s there" in one.runs[0].warnings[0]


def test_one_run_in_two_files_is_counted_once() -> None:
    study = study_from_runs([budget(256, source="run=0.json"), budget(256, source="summary.json#1")], "s", "S")
    (only,) = study.cells[0].runs
    assert only.warnings == ("the same figures stand in summary.json#1: counted once",)


def test_two_failures_are_not_one_run_in_two_files() -> None:
    study = study_from_runs([run("a.log", completed=0, tokens=0), run("b.log", completed=0, tokens=0)], "s", "S")
    assert len(study.cells) == 2


def test_two_workloads_that_no_file_names_are_told_apart_by_their_prompt_lengths() -> None:
    runs = [run("short.json", tokens=102400), run("long.json", tokens=409600), run("long2.json", tokens=409600)]
    cells = study_from_runs(runs, "s", "S").cells
    assert [cell.settings["mean_input_len"] for cell in cells] == [1024, 4096]  # long2.json is a copy of long.json
    assert [cell.name for cell in cells] == ["in-1024", "in-4096"]
    stated = [run("short.log", tokens=102400, random_input_len=1024), run("long.log", tokens=409600, dataset="D.json")]
    assert all("mean_input_len" not in cell.settings for cell in study_from_runs(stated, "s", "S").cells)


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
