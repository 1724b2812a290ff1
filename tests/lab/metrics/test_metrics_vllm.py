"""vLLM's definitions on timestamps small enough to compute by hand."""

from __future__ import annotations

import pytest

from headrace.errors import ConfigError
from headrace.lab.metrics.vllm import parse_goodput, vllm_metrics, vllm_output
from headrace.lab.records.schema import ChunkStamp, RequestRecord

MS = 1_000_000


def request(
    sent_ms: float, *chunk_ms: float, tokens: int | None = None, planned_ms: float | None = None, prompt: int = 10
) -> RequestRecord:
    """A success that sent at `sent_ms` and got a message at each of `chunk_ms`."""
    return RequestRecord(
        index=0,
        planned_ns=round((sent_ms if planned_ms is None else planned_ms) * MS),
        sent_ns=round(sent_ms * MS),
        chunks=[ChunkStamp(round(t * MS), "content") for t in chunk_ms],
        prompt_tokens_server=prompt,
        output_tokens_server=len(chunk_ms) if tokens is None else tokens,
    )


FAILED = RequestRecord(9, planned_ns=0, sent_ns=0, error_class="http_4xx", error="too long", prompt_tokens_client=7)


def test_one_request() -> None:
    output = vllm_output(request(100, 300, 350, 450))
    assert output.ttft_s == pytest.approx(0.200)
    assert output.itl_s == pytest.approx((0.050, 0.100))
    assert output.latency_s == pytest.approx(0.350)
    assert output.tpot_s == pytest.approx(0.075)  # (350 - 200) / (3 - 1)


def test_aggregates_of_two_requests_and_a_failure() -> None:
    records = [request(0, 100, 200, prompt=10), request(0, 300, 330, 360, prompt=20), FAILED]
    metrics = vllm_metrics(records, duration_s=2.0)
    assert (metrics.completed, metrics.failed, metrics.total_input, metrics.total_output) == (2, 1, 30, 5)
    assert (metrics.request_throughput, metrics.output_throughput, metrics.total_token_throughput) == (1.0, 2.5, 17.5)
    ttft = metrics.statistics_ms("ttft", [99])
    assert ttft == pytest.approx(
        {"mean_ttft_ms": 200, "median_ttft_ms": 200, "std_ttft_ms": 100, "p99_ttft_ms": 100 + 0.99 * 200}
    )
    tpot = metrics.statistics_ms("tpot", [])
    assert tpot["mean_tpot_ms"] == pytest.approx((100 + 30) / 2)
    itl = metrics.statistics_ms("itl", [50, 99.9])
    assert itl["mean_itl_ms"] == pytest.approx((100 + 30 + 30) / 3)  # pooled over gaps, not a mean of means
    assert itl["p50_itl_ms"] == pytest.approx(30) and "p99.9_itl_ms" in itl


def test_a_bundle_of_tokens_is_one_gap_so_mean_itl_is_not_tpot() -> None:
    metrics = vllm_metrics([request(0, 100, 220, 340, tokens=9)], 1.0)
    assert metrics.statistics_ms("itl", [])["mean_itl_ms"] == pytest.approx(120)
    assert metrics.statistics_ms("tpot", [])["mean_tpot_ms"] == pytest.approx(240 / 8)


def test_one_token_answers_have_no_tpot_but_meet_every_goal_for_it() -> None:
    records = [request(0, 100), request(0, 100, 400)]
    metrics = vllm_metrics(records, 1.0, goodput_ms={"tpot": 50})
    assert metrics.values_s["tpot"] == pytest.approx([0.3])
    assert metrics.request_goodput == 1.0


def test_goodput_needs_every_goal() -> None:
    records = [request(0, 100, 150), request(0, 100, 900), request(0, 700, 750), FAILED]
    goals = {"ttft": 200.0, "e2el": 500.0}
    assert vllm_metrics(records, 2.0, goodput_ms=goals).request_goodput == 0.5
    assert vllm_metrics(records, 2.0).request_goodput is None


def test_an_empty_list_is_zero_in_this_dialect() -> None:
    metrics = vllm_metrics([FAILED], 1.0)
    assert metrics.statistics_ms("ttft", [99]) == dict.fromkeys(
        ("mean_ttft_ms", "median_ttft_ms", "std_ttft_ms", "p99_ttft_ms"), 0.0
    )
    assert metrics.max_output_tokens_per_s == 0.0 and metrics.max_concurrent_requests == 0


def test_failures_contribute_zeros_to_the_arrays() -> None:
    output = vllm_output(FAILED)
    assert (output.prompt_len, output.output_len, output.latency_s, output.error) == (0, 0, 0.0, "too long")


def test_peak_throughput_counts_messages_in_one_second_buckets_from_the_first_start() -> None:
    records = [request(500, 600, 1400, 1600, tokens=30), request(600, 1450, 1550)]
    # Seconds from 0.5: [0.5, 1.5) has 600, 1400 and 1450; [1.5, 2.5) has 1600 and 1550.
    assert vllm_metrics(records, 2.0).max_output_tokens_per_s == 3.0


def test_peak_concurrency_is_exact_over_half_open_intervals() -> None:
    one_after_the_other = [request(0, 1000), request(1000, 2000)]
    assert vllm_metrics(one_after_the_other, 2.0).max_concurrent_requests == 1
    assert vllm_metrics([request(0, 1000), request(999, 2000)], 2.0).max_concurrent_requests == 2


def test_without_a_server_count_the_text_is_counted_and_else_it_is_one() -> None:
    record = request(0, 100, 200)
    record.output_tokens_server = None
    assert vllm_output(record).output_len == 1
    record.output_tokens_retokenized = 2
    assert vllm_output(record).output_len == 2


def test_the_wait_for_a_slot_is_not_in_the_latency_but_kept() -> None:
    waited = request(500, 600, planned_ms=100)
    assert vllm_output(waited).latency_s == pytest.approx(0.1)
    assert vllm_output(waited).queue_time_s == pytest.approx(0.4)
    assert vllm_output(waited, arrival_ns=0).queue_time_s == pytest.approx(0.5)


@pytest.mark.parametrize("bad", ["itl:5", "ttft", "ttft:soon", "ttft:-1", "ttft:nan"])
def test_goals_that_mean_nothing_are_refused(bad: str) -> None:
    with pytest.raises(ConfigError, match="--goodput"):
        parse_goodput([bad])


def test_goals() -> None:
    assert parse_goodput(["ttft:200", "e2el:5e3"]) == {"ttft": 200.0, "e2el": 5000.0}
