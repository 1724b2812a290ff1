"""Panels and their Plotly figures: every cell is drawn, and Plotly's markup is switched off."""

from __future__ import annotations

import html
import json
import math
from typing import Any

import pytest
from report_worlds import campaign, measured, settings, study

from headrace.lab.records.results import Cell, CellStatus, RunResult, Study
from headrace.lab.report.charts import label, plotly_figure
from headrace.lab.report.data import study_view
from headrace.lab.report.panels import Panel, dashboards
from headrace.lab.report.svg import panel_svg


def panels(world: Study) -> dict[str, Panel]:
    return {panel.metric: panel for board in dashboards([study_view(world, ())])[0] for panel in board.panels}


def drawn(panel: Panel) -> set[str]:
    return {point.cell for line in panel.series for point in line.points}


def test_the_four_dashboards() -> None:
    (boards,) = dashboards([study_view(campaign(), ())])
    assert [[panel.metric for panel in board.panels] for board in boards] == [
        ["duration", "output_throughput", "total_token_throughput"],
        ["mean_ttft_ms", "median_ttft_ms", "p99_ttft_ms"],
        ["mean_tpot_ms", "median_tpot_ms", "p99_tpot_ms"],
        ["mean_itl_ms", "median_itl_ms", "p99_itl_ms"],
    ]


def test_budget_is_on_a_log2_axis_and_chunking_is_colour_and_symbol() -> None:
    panel = panels(campaign())["duration"]
    assert panel.x.kind == "log2" and panel.x.ticks == (64, 128, 256, 512)
    lines = [trace for trace in plotly_figure(panel)["data"] if trace["mode"] == "lines+markers"]
    assert len({trace["line"]["color"] for trace in lines}) == len({trace["marker"]["symbol"] for trace in lines}) == 2


def test_no_cell_is_a_gap() -> None:
    world = campaign()
    for panel in panels(world).values():
        marks = {mark.cell: mark.status for mark in panel.marks}
        assert marks == {"off-64": "illegal", "on-64": "failed"}
        assert drawn(panel) | set(marks) == {cell.name for cell in world.cells}


def test_an_illegal_cell_tells_its_rule_and_reason_on_the_chart() -> None:
    figure = plotly_figure(panels(campaign())["duration"])
    mark = next(trace for trace in figure["data"] if trace.get("name") == "illegal")
    said = mark["hovertext"][0].replace("<br>", " ")
    assert mark["yaxis"] == "y2" and "by rule R1" in said
    assert "--max-num-batched-tokens 64 is below --max-model-len 512" in said


def test_a_degraded_cell_stands_beside_the_plot_with_its_value_in_the_hover() -> None:
    known = settings(1024, False)
    short = Cell("short", known, CellStatus.DEGRADED, (RunResult("r", known, {"duration": 4.5}),), "R13", "half served")
    panel = panels(study(measured(256), measured(512), short))["duration"]
    assert drawn(panel) == {"on-256", "on-512"}
    assert panel.marks[0].status == "degraded" and any("not comparable" in line for line in panel.marks[0].hover)
    assert panel.y.high > 40  # its 4.5 s did not stretch the axis of the others


def test_a_substituted_cell_is_hollow_and_says_what_was_changed() -> None:
    plain = measured(64)
    changed = Cell(
        "changed",
        plain.settings,
        CellStatus.SUBSTITUTED,
        plain.runs,
        "R2",
        "why",
        {"max_num_seqs": (256, 64)},
    )
    figure = plotly_figure(panels(study(changed, measured(128)))["duration"])
    fills = figure["data"][0]["marker"]["color"]
    assert fills[0] != fills[1]
    assert "max_num_seqs: 256 → 64" in figure["data"][0]["hovertext"][0].replace("<br>", " ")


def test_a_missing_metric_is_marked_not_dropped() -> None:
    bare = measured(128)
    bare = Cell("bare", bare.settings, bare.status, (RunResult("r", bare.settings, {"duration": 50.0}),))
    world = panels(study(bare, measured(256)))
    assert "bare" in drawn(world["duration"])
    assert [mark.status for mark in world["p99_itl_ms"].marks] == ["missing"]


def test_repeats_are_points_with_a_bar_from_lowest_to_highest() -> None:
    panel = panels(campaign(3))["duration"]
    point = panel.series[0].points[0]
    assert len(point.runs) == 3 and point.low == min(point.runs) < point.y < point.high == max(point.runs)
    traces = plotly_figure(panel)["data"]
    assert "error_y" in traces[1] and len(traces[0]["x"]) == 9
    assert "error_y" not in plotly_figure(panels(campaign(1))["duration"])["data"][0]


def test_cells_that_share_a_budget_become_two_lines_named_by_what_differs() -> None:
    world = study(
        *(measured(budget, name=f"{rate}-{budget}", rate=rate) for rate in (1, 4) for budget in (128, 256)),
    )
    lines = panels(world)["duration"].series
    assert [line.label for line in lines] == ["chunked prefill on · rate 1", "chunked prefill on · rate 4"]
    assert {line.dash for line in lines} == {0, 1}


def test_settings_that_move_with_the_budget_do_not_split_a_line() -> None:
    world = study(*(measured(budget, max_num_seqs=budget) for budget in (64, 128, 256)))
    assert len(panels(world)["duration"].series) == 1


def test_without_budgets_the_cells_stand_by_name() -> None:
    cells = [Cell(name, {}, CellStatus.OK, (RunResult(name, {}, {"duration": 3.0}),)) for name in ("one", "two")]
    axis = panels(study(*cells))["duration"].x
    assert axis.kind == "category" and axis.labels == ("one", "two")


def test_a_cell_that_does_not_state_its_budget_stands_apart_under_its_own_label() -> None:
    known = {"model": "demo", "enable_chunked_prefill": True}
    panel = panels(study(measured(64), measured(128), Cell("bare", known, runs=(RunResult("r", known, figures_()),))))[
        "duration"
    ]
    assert "bare" in drawn(panel) and panel.x.labels[-1] == "n/s" and panel.x.ticks[-1] == 512


def test_a_rate_sweep_has_the_rate_on_the_axis_and_inf_beyond_it() -> None:
    cells = []
    for rate in (0.5, 2, "inf"):
        known = {"model": "demo", "request_rate": rate}
        cells.append(Cell(f"rate-{rate}", known, runs=(RunResult(f"r{rate}", known, figures_()),)))
    axis = panels(study(*cells))["duration"].x
    assert axis.title == "request_rate (log2)"
    assert axis.labels == ("0.5", "2", "inf")


def test_one_cell_left_out_that_states_a_budget_does_not_make_it_the_axis() -> None:
    rates = [
        Cell(f"rate-{rate}", known, runs=(RunResult(f"r{rate}", known, figures_()),))
        for rate in (1, 2, 4)
        if (known := {"model": "demo", "request_rate": rate})
    ]
    known = {"model": "demo", "request_rate": 8, "max_num_batched_tokens": 512}
    short = Cell("short", known, CellStatus.DEGRADED, (RunResult("s", known, figures_()),), None, "half served")
    assert panels(study(*rates, short))["duration"].x.labels == ("1", "2", "4", "8")


def test_long_names_keep_their_ends_on_the_axis() -> None:
    cells = [Cell(f"a-very-long-common-start-{n}", {}, runs=(RunResult("r", {}, {"duration": 1.0}),)) for n in (1, 2)]
    assert panels(study(*cells))["duration"].x.labels == ("…ommon-start-1", "…ommon-start-2")


def figures_() -> dict[str, float]:
    return dict(measured(256).runs[0].metrics)


def test_panels_with_one_unit_share_their_axis_and_a_wide_range_is_logarithmic() -> None:
    world = panels(study(measured(64), measured(8192)))
    assert world["mean_itl_ms"].y == world["p99_itl_ms"].y
    assert world["mean_itl_ms"].y.kind == "log"
    assert world["duration"].y.kind == "linear" and world["duration"].y.low == 0


def test_studies_side_by_side_have_axes_of_one_kind_and_unit() -> None:
    narrow, wide = study(measured(4096), measured(8192)), study(measured(16), measured(8192))
    beside = dashboards([study_view(world, (), index) for index, world in enumerate((narrow, wide))])
    for one, other in zip(*beside, strict=True):
        for left, right in zip(one.panels, other.panels, strict=True):
            assert (left.y.kind, left.unit) == (right.y.kind, right.unit)
            if left.y.kind == "log":  # the same step up is the same ratio
                assert left.y.high / left.y.low == pytest.approx(right.y.high / right.y.low)
    assert panels(narrow)["mean_tpot_ms"].y.kind == "linear"  # alone it need not be logarithmic
    assert beside[0][2].panels[0].y.kind == "log"


def test_long_times_are_shown_in_seconds() -> None:
    panel = panels(campaign())["mean_ttft_ms"]
    assert panel.unit == "s" and panel.series[0].points[0].y == pytest.approx(32.0, abs=0.5)


@pytest.mark.parametrize("text", ["<b>bold</b>", '<a href="javascript:x">y</a>', "a<br>b", "&lt;i&gt;", "<img src=x>"])
def test_plotly_sees_no_markup_in_foreign_text(text: str) -> None:
    assert "<" not in label(text) and ">" not in label(text)
    assert html.unescape(label(text)) == text


def test_hover_texts_hold_no_tag_but_our_line_break() -> None:
    world = study(measured(64, name="<b>x</b><img src=x>"), measured(128, name="</script>", model="<a href=x>"))
    for panel in panels(world).values():
        for text in strings(plotly_figure(panel)):
            assert "<" not in text.replace("<br>", "")


def strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for item in items for text in strings(item)]


def test_figures_are_strict_json_whatever_the_figures_are() -> None:
    odd = measured(64)
    broken = RunResult("r", odd.settings, {"duration": math.nan, "mean_ttft_ms": math.inf, "p99_itl_ms": -1.0})
    zero = RunResult("r", odd.settings, dict.fromkeys(odd.runs[0].metrics, 0.0) | {"completed": 1})
    world = study(Cell("odd", odd.settings, odd.status, (broken,)), Cell("zero", odd.settings, odd.status, (zero,)))
    for panel in panels(world).values():
        json.dumps(plotly_figure(panel), allow_nan=False)
        assert "nan" not in panel_svg(panel)


def test_every_tick_lies_on_its_axis() -> None:
    for world in (campaign(), campaign(3), study(measured(64), measured(8192)), study(measured(100))):
        for panel in panels(world).values():
            for axis in (panel.x, panel.y):
                assert axis.ticks and all(axis.low <= tick <= axis.high for tick in axis.ticks)
