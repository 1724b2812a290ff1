"""Two targets in one study: a line each, also where their budgets never meet."""

from __future__ import annotations

from headrace.lab.records.results import Cell, CellStatus, RunResult, Study
from headrace.lab.report.data import study_view
from headrace.lab.report.panels import dashboards


def test_a_line_never_joins_two_targets() -> None:
    cells = tuple(
        Cell(
            f"{target}-{budget}",
            {"max_num_batched_tokens": budget, "target": target},
            CellStatus.OK,
            (RunResult(f"{target}/{budget}", {}, {"duration": 1.0 + budget, "completed": 5.0}),),
        )
        for target, budget in (("vllm", 64), ("vllm", 128), ("headrace", 256), ("headrace", 512))
    )
    [boards] = dashboards([study_view(Study("s", "t", "measured", cells), (), 0)])
    lines = [[point.cell for point in series.points] for series in boards[0].panels[0].series]
    assert lines == [["vllm-64", "vllm-128"], ["headrace-256", "headrace-512"]]
