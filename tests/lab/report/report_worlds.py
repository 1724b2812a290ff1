"""Small studies that the report's tests look at."""

from __future__ import annotations

from headrace.lab.findings.finding import Finding
from headrace.lab.records.results import Cell, CellStatus, RunResult, Study


def figures(budget: int, chunked: bool, repeat: int = 0) -> dict[str, float]:
    """Figures with the shape of a saturated device: throughput levels off, latency per token grows with the budget."""
    duration = (40 + 2000 / budget) * (1 + 0.01 * repeat)
    result = {
        "completed": 120,
        "failed": 0,
        "duration": duration,
        "total_input_tokens": 17000,
        "total_output_tokens": 9000,
        "request_throughput": 120 / duration,
        "output_throughput": 9000 / duration,
        "total_token_throughput": 26000 / duration,
    }
    for stat, factor in (("mean", 1.0), ("median", 0.9), ("p99", 2.2)):
        scale = factor * (1 + 0.01 * repeat)
        result[f"{stat}_ttft_ms"] = 18000 * scale * (1 + 100 / budget)
        result[f"{stat}_tpot_ms"] = (40 + budget / 12) * scale * (1 if chunked else 1.4)
        result[f"{stat}_itl_ms"] = (30 + budget / 14) * scale
    return result


def settings(budget: int, chunked: bool, **more: object) -> dict[str, object]:
    return {
        "model": "demo",
        "enable_chunked_prefill": chunked,
        "max_num_batched_tokens": budget,
        "max_num_seqs": 32,
        "request_rate": "inf",
        **more,
    }


def measured(budget: int, chunked: bool = True, repeats: int = 1, name: str = "", **more: object) -> Cell:
    name = name or f"{'on' if chunked else 'off'}-{budget}"
    known = settings(budget, chunked, **more)
    runs = tuple(RunResult(f"runs/{name}/{n}", known, figures(budget, chunked, n)) for n in range(repeats))
    return Cell(name, known, CellStatus.OK, runs)


def unmeasured(budget: int, chunked: bool, status: CellStatus, rule: str | None, reason: str) -> Cell:
    return Cell(f"{'on' if chunked else 'off'}-{budget}", settings(budget, chunked), status, (), rule, reason)


def study(*cells: Cell, name: str = "demo", title: str = "Budget and chunked prefill", **facts: object) -> Study:
    return Study(name, title, "measured", cells, facts)


def campaign(repeats: int = 1) -> Study:
    """Six measured cells, one illegal, one failed."""
    return study(
        *(measured(budget, chunked, repeats) for chunked in (True, False) for budget in (128, 256, 512)),
        unmeasured(64, False, CellStatus.ILLEGAL, "R1", "--max-num-batched-tokens 64 is below --max-model-len 512"),
        unmeasured(64, True, CellStatus.FAILED, None, "the server stopped answering after 31 s"),
        cpu="two cores",
    )


FINDING = Finding(
    "budget.duration",
    "throughput",
    "Duration falls until 512 (43.9 s).",
    {"best_s": 43.9, "worst_s": 71.25},
    ("on-128", "on-512", "gone"),
    ("One run a cell.",),
)
