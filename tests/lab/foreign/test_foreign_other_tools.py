"""Reports of GuideLLM, AIPerf and inference-perf: a figure stands under the key whose definition it has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headrace.lab.records.foreign import read_paths
from headrace.lab.records.foreign.other_tools import read_report
from headrace.lab.records.results import RunResult


def one(item: dict[str, object]) -> RunResult:
    found = read_report(item, "x.json")
    assert found is not None
    (run,) = found
    return run


def guide(value: float) -> dict[str, object]:
    return {"successful": {"mean": value, "median": value, "total_sum": 2 * value, "percentiles": {"p99": value}}}


def test_guidellms_itl_is_a_tpot_and_its_tpot_contains_ttft() -> None:
    metrics = {
        "time_to_first_token_ms": guide(100.0),
        "inter_token_latency_ms": guide(20.0),
        "time_per_output_token_ms": guide(25.0),
        "request_latency": guide(1.5),
        "output_token_count": guide(30.0),
        "request_totals": {"successful": 2, "errored": 1},
    }
    benchmark = {"metrics": metrics, "duration": 5.0, "config": {"strategy": {"type_": "constant", "rate": 2.0}}}
    run = one({"metadata": {"guidellm_version": "0.8.1"}, "benchmarks": [benchmark]})
    assert run.metrics["mean_tpot_ms"] == 20.0 and run.metrics["mean_tpot_with_ttft_ms"] == 25.0
    assert (run.metrics["p99_e2el_ms"], run.metrics["total_output_tokens"]) == (1500.0, 60.0)
    assert (run.metrics["completed"], run.metrics["failed"], run.metrics["duration"]) == (2, 1, 5.0)
    assert run.settings == {
        "client": "guidellm",
        "client_version": "0.8.1",
        "request_rate": 2.0,
        "burstiness": "inf",
    }
    assert "mean_itl_ms" not in run.metrics


def test_aiperfs_chunk_latency_is_the_itl() -> None:
    run = one(
        {
            "input_config": {"endpoint": {"model_names": ["m"]}, "loadgen": {"concurrency": 4}},
            "request_count": {"avg": 64.0},
            "request_latency": {"avg": 3743.0, "p50": 3700.0},
            "inter_token_latency": {"avg": 18.5, "p99": 20.0},
            "inter_chunk_latency": {"avg": 18.6, "std": 1.0},
        }
    )
    assert run.metrics["mean_tpot_ms"] == 18.5 and run.metrics["mean_itl_ms"] == 18.6
    assert run.metrics["median_e2el_ms"] == 3700.0 and run.settings["max_concurrency"] == 4


def test_inference_perf_counts_in_seconds_and_tells_how_late_it_was() -> None:
    run = one(
        {
            "load_summary": {"count": 10, "schedule_delay": {"p99": 35.0}, "requested_rate": 2.0},
            "successes": {
                "count": 10,
                "latency": {"time_to_first_token": {"mean": 2.0, "p99": 3.0}, "inter_token_latency": {"mean": 0.01}},
                "throughput": {"requests_per_sec": 2.5, "output_tokens_per_sec": 100.0},
                "output_len": {"mean": 62.5},
            },
            "failures": {"count": 1},
        }
    )
    assert run.metrics["p99_ttft_ms"] == 3000.0 and run.metrics["total_output_tokens"] == 625
    assert run.metrics["duration"] == 4.0 and any("35.0 s late" in warning for warning in run.warnings)


@pytest.mark.parametrize("item", [{}, {"benchmarks": [], "metadata": {}}, {"successes": 3, "load_summary": {}}])
def test_other_objects_are_left_to_others(item: dict[str, object]) -> None:
    assert read_report(item, "x") is None


def test_odd_values_are_no_figures() -> None:
    item = {"input_config": 3, "request_count": {"avg": "many"}, "request_latency": {"avg": float("nan"), "p99": []}}
    run = one(json.loads(json.dumps(item)))
    assert run.metrics == {"failed": 0.0}


def test_the_real_reports(shared_data: Path) -> None:
    found = read_paths([shared_data / "bench-json" / name for name in ("guidellm", "aiperf", "inference-perf")])
    clients = sorted(str(run.settings["client"]) for run in found.runs)
    assert clients == ["aiperf"] * 2 + ["guidellm"] * 2 + ["inference-perf"] * 12
    four = next(run for run in found.runs if "concurrency4/profile_export_aiperf" in run.source)
    assert round(four.metrics["mean_ttft_ms"], 2) == 49.84 and four.metrics["total_output_tokens"] == 12798
