"""The verdict: whose fault a late stamp is, and when a run may not be believed."""

from __future__ import annotations

import pytest

from headrace.lab.client.self_check import ClientCost, judge
from headrace.lab.records.results import Level
from headrace.lab.records.schema import ChunkStamp, RequestRecord

MS = 1_000_000


def request(index: int = 0, *, lag_ms: float = 0.1, ttft_ms: float = 50, error: str | None = None) -> RequestRecord:
    sent = round(lag_ms * MS)
    chunks = [] if error else [ChunkStamp(sent + round(ttft_ms * MS), "content")]
    return RequestRecord(index, planned_ns=0, sent_ns=sent, chunks=chunks, error_class=error)


def cost(lag_ms: float = 0.5, cpu_s: float = 1.0, drift_ms: float = 0.0) -> ClientCost:
    return ClientCost([round(lag_ms * MS)] * 20, cpu_s=cpu_s, wall_s=10.0, drift_ns=round(drift_ms * MS))


def test_a_clean_run_is_valid_and_names_its_error_bar() -> None:
    verdict = judge([request(i) for i in range(10)], cost(), paced=True)
    assert verdict.level is Level.VALID and verdict.reasons == ()
    assert verdict.line() == "client: VALID (p99 send lag 0.1 ms, p99 event-loop lag 0.5 ms, client CPU 10.0 %)"


@pytest.mark.parametrize(
    ("lag_ms", "ttft_ms", "level"),
    [(4.9, 50, Level.VALID), (5.1, 50, Level.INVALID), (24, 500, Level.VALID), (26, 500, Level.INVALID)],
)
def test_late_sends_spoil_a_paced_run_beyond_5_ms_or_5_percent_of_ttft(
    lag_ms: float, ttft_ms: float, level: Level
) -> None:
    records = [request(i, lag_ms=lag_ms, ttft_ms=ttft_ms) for i in range(10)]
    assert judge(records, cost(), paced=True).level is level


@pytest.mark.parametrize(("requests", "level"), [(20, Level.WARN), (150, Level.INVALID)])
def test_a_late_one_among_few_is_a_hiccup_and_two_in_a_hundred_are_not(requests: int, level: Level) -> None:
    records = [request(i, lag_ms=0.1 if i % 50 else 30) for i in range(requests)]
    assert judge(records, cost(), paced=True).level is level


def test_when_all_are_due_at_once_the_time_to_send_them_is_only_a_warning() -> None:
    verdict = judge([request(i, lag_ms=80) for i in range(10)], cost(), paced=False)
    assert verdict.level is Level.WARN and "p99 send lag 80.0 ms" in verdict.reasons[0]


@pytest.mark.parametrize(("failures", "level"), [(1, Level.WARN), (11, Level.INVALID), (100, Level.INVALID)])
def test_failures_are_outcomes(failures: int, level: Level) -> None:
    records = [request(i, error="http_5xx" if i < failures else None) for i in range(100)]
    assert judge(records, cost(), paced=True).level is level


def test_nothing_issued_is_invalid() -> None:
    assert judge([], cost(), paced=True).level is Level.INVALID


@pytest.mark.parametrize(
    ("spent", "level"),
    [
        (cost(cpu_s=9.5), Level.WARN),
        (cost(lag_ms=60), Level.WARN),
        (cost(drift_ms=60), Level.INVALID),
        (cost(drift_ms=-60), Level.INVALID),
    ],
    ids=["client-bound", "blocked loop", "clock ahead", "clock back"],
)
def test_what_else_spoils_a_run(spent: ClientCost, level: Level) -> None:
    assert judge([request(i) for i in range(10)], spent, paced=True).level is level
