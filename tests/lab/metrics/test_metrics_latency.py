"""Our latencies: from the planned start, to text that a user can see."""

from __future__ import annotations

import pytest

from headrace.lab.metrics.latency import latency_summary, percentile, request_latency
from headrace.lab.metrics.result import run_result_from_records
from headrace.lab.records.schema import ChunkStamp, RequestRecord

MS = 1_000_000


def chat_request() -> RequestRecord:
    """Planned at 0, sent at 100 ms, a role message at 110, text at 1110, 1150 and 1350, a finish message at 1360."""
    kinds = [(110, "role"), (1110, "content"), (1150, "content"), (1350, "content"), (1360, "empty")]
    return RequestRecord(
        0,
        planned_ns=0,
        admitted_ns=100 * MS,
        sent_ns=100 * MS,
        chunks=[ChunkStamp(t * MS, kind) for t, kind in kinds],
        output_tokens_server=5,
        prompt_tokens_server=8,
        max_tokens=5,
    )


def test_the_role_message_and_the_clients_wait_are_told_apart() -> None:
    latency = request_latency(chat_request())
    assert latency.client_lag_s == pytest.approx(0.100)
    assert latency.ttft_s == pytest.approx(1.110)
    assert latency.ttft_sent_s == pytest.approx(1.010)
    assert latency.ttf_event_s == pytest.approx(0.010)  # what vLLM's client calls TTFT: a second earlier
    assert latency.e2e_s == pytest.approx(1.350)


def test_tpot_and_the_stall_are_over_visible_text() -> None:
    latency = request_latency(chat_request())
    assert latency.tpot_s == pytest.approx((1.350 - 1.110) / 4)
    assert latency.stall_s == pytest.approx(0.200)
    assert latency.tokens_per_chunk == pytest.approx(5 / 3)


def test_undefined_is_none_and_counted_never_zero() -> None:
    record = RequestRecord(0, planned_ns=0, chunks=[ChunkStamp(5 * MS, "content")], output_tokens_server=1)
    latency = request_latency(record)
    assert latency.tpot_s is None and latency.stall_s is None
    assert latency_summary([record])["tpot_undefined"] == 1
    assert latency_summary([]) == {}
    assert percentile([], 99) is None


def test_a_result_has_vllms_keys_beside_ours() -> None:
    result = run_result_from_records([chat_request()], source="here", settings={"model": "m"}, duration_s=2.0)
    assert result.metrics["mean_ttft_ms"] == pytest.approx(10)
    assert result.metrics["mean_ttft_planned_ms"] == pytest.approx(1110)
    assert result.metrics["p99_e2el_ms"] == pytest.approx(1260)
    assert result.metrics["output_throughput"] == pytest.approx(2.5)
    assert any("1.7 tokens" in warning for warning in result.warnings)


def test_answers_shorter_than_asked_for_are_said_aloud() -> None:
    record = chat_request()
    record.max_tokens = 50
    result = run_result_from_records([record], source="here", settings={}, duration_s=2.0)
    assert any("shorter than asked for" in warning for warning in result.warnings)
