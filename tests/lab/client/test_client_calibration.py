"""The instrument measures itself: against a server that does nothing, and by whose time the machine spent."""

from __future__ import annotations

import pytest

from headrace.lab.client.calibration import Load, busiest, calibrate, stamp_lags_ms
from headrace.lab.client.run import cache_warnings
from headrace.lab.client.self_check import ClientCost, judge
from headrace.lab.client.served import served_between
from headrace.lab.records.results import Level
from headrace.lab.records.schema import ChunkStamp, RequestRecord
from headrace.lab.workload.spec import WorkloadSpec

SECOND = 1_000_000_000


def stream(index: int, first_ns: int, gap_ns: int, count: int) -> RequestRecord:
    chunks = [ChunkStamp(first_ns + i * gap_ns, "content") for i in range(count)]
    return RequestRecord(index, first_ns, first_ns, first_ns, done_ns=chunks[-1].t_ns + 1, chunks=chunks)


def test_the_load_is_that_of_the_busiest_second_and_one_process() -> None:
    records = [stream(0, 0, SECOND // 100, 300), stream(1, SECOND, SECOND // 50, 50)]
    assert busiest(records, 1) == Load(2, 150) and busiest(records, 2) == Load(1, 75)
    assert busiest([], 1) is None


def test_the_lag_is_the_stamp_minus_the_servers_own() -> None:
    record = RequestRecord(0, 0, chunks=[ChunkStamp(5_000_000, "content"), ChunkStamp(9_000_000, "content")])
    record.output_text = f" {4_000_000:018d} {6_000_000:018d}"
    assert stamp_lags_ms([record]).tolist() == [1.0, 3.0]


def test_the_null_server_streams_what_is_asked() -> None:
    found = calibrate(Load(streams=3, events_per_s=150))
    assert found is not None and 100 < found.events <= 150 and 0 < found.p50_ms <= found.p99_ms


def test_others_and_a_late_client_are_warnings_with_numbers() -> None:
    from headrace.lab.client.calibration import Calibration

    cost = ClientCost([0], 1.0, 10.0, 0, others_share=0.4, calibration=Calibration(Load(4, 900), 900, 1.0, 9.0))
    record = RequestRecord(0, 0, chunks=[ChunkStamp(50_000_000, "content")])
    verdict = judge([record], cost, paced=True)
    assert verdict.level is Level.WARN and "40%" in verdict.reasons[0] and "9.0 ms late" in verdict.reasons[1]
    assert verdict.line().endswith("others' CPU 40.0 %, stamps late by at most p99 9.0 ms)")


@pytest.mark.parametrize(("cached", "said"), [(0, False), (3, False), (60, True)])
def test_prompts_that_were_in_the_cache_are_told(cached: int, said: bool) -> None:
    record = RequestRecord(0, 0, prompt_tokens_server=100, extra={"cached_tokens": cached})
    assert bool(cache_warnings(WorkloadSpec(num_prompts=1), [record], {})) is said
    shared = WorkloadSpec(num_prompts=1, dataset_name="shared-prefix")
    assert cache_warnings(shared, [record], {}) == []
    counted = {"prefix_queries": 100.0, "prefix_hits": float(cached)}
    assert bool(cache_warnings(WorkloadSpec(num_prompts=1), [RequestRecord(0, 0)], counted)) is said


def test_what_a_server_counted_in_between() -> None:
    def page(count: int, total: float, hits: int) -> str:
        labels = '{engine="0",model_name="m"}'
        return (
            f"vllm:request_queue_time_seconds_count{labels} {count}\n"
            f"vllm:request_queue_time_seconds_sum{labels} {total}\n"
            f'vllm:request_queue_time_seconds_bucket{{le="0.3"}} 7\nvllm:prefix_cache_hits_total{labels} {hits}\n'
        )

    found = served_between(page(10, 1.0, 5), page(14, 3.0, 9))
    assert found == {"count_queue": 4.0, "mean_queue_ms": 500.0, "prefix_hits": 4.0}
    assert served_between(page(10, 1.0, 5), page(1, 0.1, 0)) == {}  # it was restarted
