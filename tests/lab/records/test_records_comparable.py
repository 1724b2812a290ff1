"""One tolerance decides for imports and for findings what the same workload is."""

from __future__ import annotations

import pytest

from headrace.lab.findings.table import build
from headrace.lab.records.comparable import same_workload, shortfall
from headrace.lab.records.foreign import study_from_runs
from headrace.lab.records.results import RunResult


def run(tokens: int, budget: int = 64, repeat: int = 1) -> RunResult:
    known = {"max_num_batched_tokens": budget, "enable_chunked_prefill": True, "num_prompts": 100, "repeat": repeat}
    return RunResult(f"sweep/{budget}-{repeat}.json", known, {"completed": 100, "total_input_tokens": tokens})


@pytest.mark.parametrize(("tokens", "same"), [(1000, True), (1015, True), (1030, False)])
def test_imports_and_findings_agree(tokens: int, same: bool) -> None:
    assert same_workload(run(1000).metrics, run(tokens).metrics) is same
    repeats = study_from_runs([run(1000), run(tokens, repeat=2)], "s", "s")
    assert (len(repeats.cells) == 1) is same
    over_budgets = study_from_runs([run(1000), run(tokens, 128)], "s", "s")
    assert (len(build(over_budgets).cells) == 2) is same


@pytest.mark.parametrize(
    ("metrics", "found"),
    [
        ({"completed": 90}, (90, 100)),
        ({"completed": 100, "failed": 3}, (100, 103)),
        ({"completed": 100}, None),
        ({}, None),
        ({"completed": 100, "failed": float("inf")}, None),
        ({"completed": float("nan")}, None),
    ],
)
def test_a_shortfall_is_told_from_whatever_a_file_holds(
    metrics: dict[str, float], found: tuple[int, int] | None
) -> None:
    assert shortfall(RunResult("a", {"num_prompts": 100}, metrics)) == found
