"""Small studies with known causes, for the tests of the findings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from headrace.lab.findings import Finding, explain
from headrace.lab.records.results import Cell, CellStatus, Level, RunResult, RunVerdict, Study


def metrics(duration: float = 100.0, **given: float | None) -> dict[str, float]:
    """Figures of one run over 100 requests of 50 + 50 tokens, all latencies plain unless given; None removes one."""
    figures: dict[str, float | None] = {
        "completed": 100,
        "duration": duration,
        "total_input_tokens": 5000,
        "total_output_tokens": 5000,
        "output_throughput": 5000 / duration,
        "mean_ttft_ms": 100.0,
        "mean_itl_ms": 20.0,
        "median_itl_ms": 20.0,
        "p99_itl_ms": 40.0,
        "mean_tpot_ms": 20.0,
        "median_tpot_ms": 20.0,
        "p99_tpot_ms": 30.0,
    }
    figures.update(given)
    return {key: value for key, value in figures.items() if value is not None}


def cell(
    budget: int,
    *runs: Mapping[str, float],
    on: bool = True,
    status: CellStatus = CellStatus.OK,
    rule: str | None = None,
    reason: str | None = None,
    substituted: Mapping[str, tuple[object, object]] | None = None,
    **settings: object,
) -> Cell:
    """A cell over a budget, one run for each given set of figures."""
    all_settings = {
        "enable_chunked_prefill": on,
        "max_num_batched_tokens": budget,
        "max_num_seqs": 64,
        "max_model_len": 2048,
        "request_rate": "inf",
        "num_prompts": 100,
        **settings,
    }
    name = f"{'on' if on else 'off'}-{budget}"
    results = tuple(
        RunResult(f"{name}/{index}", {**all_settings, "repeat": index}, figures) for index, figures in enumerate(runs)
    )
    return Cell(name, all_settings, status, results, rule, reason, dict(substituted or {}))


def invalid(one: Cell, *repeats: int, why: str = "the client could not keep the schedule") -> Cell:
    """The cell, with those of its runs INVALID by the client's own account."""
    verdict = RunVerdict(Level.INVALID, (f"{why}.",))
    runs = tuple(replace(run, verdict=verdict) if index in repeats else run for index, run in enumerate(one.runs))
    return replace(one, runs=runs)


def study(*cells: Cell) -> Study:
    return Study("world", "A small world", "measured", cells)


def over_budgets(metric: str, values: Sequence[float], *, budgets: Sequence[int] = (64, 128, 256, 512, 1024)) -> Study:
    """One run a budget, in which only this metric moves."""
    return study(*(cell(budget, metrics(**{metric: value})) for budget, value in zip(budgets, values, strict=False)))


def findings(of: Study) -> dict[str, Finding]:
    found = explain(of)
    assert len({one.id for one in found}) == len(found), "every finding has its own id"
    return {one.id: one for one in found}
