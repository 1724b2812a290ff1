"""vLLM's printed block and result file, byte for byte and key for key."""

from __future__ import annotations

import json
import math
from datetime import datetime
from pathlib import Path

import pytest

from headrace.errors import ConfigError
from headrace.lab.metrics.dialects import BenchSettings, result_block, result_file_name, result_json
from headrace.lab.metrics.vllm import VllmMetrics, vllm_metrics
from headrace.lab.records.schema import ChunkStamp, RequestRecord

MS = 1_000_000
HERE = Path(__file__).parent
DATE = datetime(2025, 3, 25, 22, 57, 58)


def two_requests_and_a_failure(goodput_ms: dict[str, float] | None = None) -> VllmMetrics:
    def request(sent: int, *chunks: int) -> RequestRecord:
        return RequestRecord(
            0,
            planned_ns=sent * MS,
            sent_ns=sent * MS,
            chunks=[ChunkStamp(t * MS, "content") for t in chunks],
            prompt_tokens_server=100,
            output_tokens_server=len(chunks),
        )

    failed = RequestRecord(2, planned_ns=0, error_class="timeout", error="late")
    return vllm_metrics([request(0, 100, 200), request(0, 300, 330, 360), failed], 2.0, goodput_ms=goodput_ms)


def settings(**changes: object) -> BenchSettings:
    return BenchSettings(
        **{"backend": "vllm", "model_id": "org/m", "tokenizer_id": "org/m", "num_prompts": 3} | changes
    )  # type: ignore[arg-type]


CURRENT = (HERE / "block_current.txt").read_text().removesuffix("\n")

OF_2025 = (HERE / "block_2025.txt").read_text().removesuffix("\n")


def test_the_current_block() -> None:
    everything = settings(
        request_rate=4.0,
        max_concurrency=8,
        metrics=("e2el", "itl", "ttft", "tpot"),  # printed in vLLM's order, not this one
        percentiles=(50.0, 99.9),
    )
    assert result_block(two_requests_and_a_failure({"ttft": 200}), everything) == CURRENT


def test_the_block_of_2025() -> None:
    assert result_block(two_requests_and_a_failure(), settings(), dialect="vllm-2025") == OF_2025


def test_lines_that_vllm_leaves_out_are_left_out() -> None:
    block = result_block(two_requests_and_a_failure(), settings())
    assert "Maximum request concurrency" not in block and "configured" not in block and "goodput" not in block


def test_the_published_logs_have_the_layout_of_2025(shared_data: Path) -> None:
    (log, *_) = sorted((shared_data / "published-rounds").glob("*.log"))
    lines = log.read_text().splitlines()
    block = lines[lines.index(OF_2025.splitlines()[0]) :][: len(OF_2025.splitlines())]
    assert [line[:40] for line in block] == [line[:40] for line in OF_2025.splitlines()]
    assert [len(line) for line in block if line.endswith(" ")][:3] == [51, 51, 51]


def test_without_details_some_arrays_stay_as_in_vllm() -> None:
    plain = result_json(two_requests_and_a_failure(), settings(), DATE)
    assert "latencies" in plain and "queue_times" in plain
    assert not {"ttfts", "itls", "errors", "input_lens", "start_times", "generated_texts"} & plain.keys()
    detailed = result_json(two_requests_and_a_failure(), settings(), DATE, detailed=True)
    assert detailed["itls"] == [pytest.approx([0.1]), pytest.approx([0.03, 0.03]), []]
    assert detailed["output_lens"] == [2, 3, 0] and detailed["errors"] == ["", "", "late"]


def test_an_infinite_rate_is_the_string_inf_and_the_file_is_json_for_everyone() -> None:
    result = result_json(two_requests_and_a_failure(), settings(burstiness=math.inf), DATE)
    assert result["request_rate"] == "inf"
    json.dumps(result, allow_nan=False)


def test_file_names() -> None:
    assert result_file_name(settings(), DATE) == "vllm-infqps-m-20250325-225758.json"
    named = settings(label="mine", request_rate=10.0, max_concurrency=4)
    assert result_file_name(named, DATE) == "mine-10.0qps-concurrency4-m-20250325-225758.json"


def test_unknown_metrics_and_percentiles_are_refused() -> None:
    with pytest.raises(ConfigError, match="percentile-metrics"):
        settings(metrics=("ttft", "speed"))
    with pytest.raises(ConfigError, match="metric-percentiles"):
        settings(percentiles=(101.0,))


def is_subsequence(part: list[str], whole: list[str]) -> bool:
    rest = iter(whole)
    return all(key in rest for key in part)


@pytest.mark.parametrize(
    ("pattern", "dialect", "added_by_hand"),
    [
        ("a100-gemma4/*.json", "vllm", set()),
        ("dgx-spark/gpt-oss-20b/0*.json", "vllm", set()),
        ("sweep_v0.25.1/*/run=*.json", "vllm", {"run_number", "max_num_seqs"}),
        ("detailed/*.json", "vllm-2025", {"best_of"}),
    ],
)
def test_keys_come_in_the_order_of_real_files(
    shared_data: Path, pattern: str, dialect: str, added_by_hand: set[str]
) -> None:
    paths = sorted((shared_data / "bench-json" / "vllm").glob(pattern))
    assert paths
    everything = settings(metrics=("ttft", "tpot", "itl", "e2el"), percentiles=(50.0, 90.0, 95.0, 99.0))
    ours = list(result_json(two_requests_and_a_failure(), everything, DATE, dialect=dialect, detailed=True))
    for path in paths:
        theirs = [key for key in json.loads(path.read_text()) if key not in added_by_hand]
        assert is_subsequence(theirs, ours), path


def test_metrics_recomputed_from_a_real_detailed_file_agree(shared_data: Path) -> None:
    """vLLM's own arrays through our formulas give vLLM's own aggregates."""
    paths = sorted((shared_data / "bench-json" / "vllm" / "detailed").glob("*.json"))
    assert paths
    for path in paths:
        theirs = json.loads(path.read_text())
        assert len(theirs["ttfts"]) == theirs["completed"], path  # no failures: zeros would stand for them
        records = []
        for ttft, gaps, n, prompt in zip(
            theirs["ttfts"], theirs["itls"], theirs["output_lens"], theirs["input_lens"], strict=True
        ):
            times, t = [round(ttft * 1e9)], ttft
            for gap in gaps:
                t += gap
                times.append(round(t * 1e9))
            chunks = [ChunkStamp(t_ns, "content") for t_ns in times]
            records.append(RequestRecord(0, 0, chunks=chunks, prompt_tokens_server=prompt, output_tokens_server=n))
        ours = vllm_metrics(records, theirs["duration"])
        assert ours.total_output == theirs["total_output_tokens"]
        assert ours.output_throughput == pytest.approx(theirs["output_throughput"])
        for metric in ("ttft", "itl"):
            for key, value in ours.statistics_ms(metric, [99]).items():
                assert value == pytest.approx(theirs[key], rel=1e-6), (path, key)
