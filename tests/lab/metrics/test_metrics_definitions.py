"""One answer, ten tools: what each would have said, worked out by hand."""

from __future__ import annotations

import pytest

from headrace.errors import ConfigError
from headrace.lab.findings.difference import Side, differences, verdict
from headrace.lab.metrics.definitions import TOOLS, figures, tool
from headrace.lab.records.schema import ChunkStamp, RequestRecord

MS = 1_000_000

# Due at 0, sent at 10 ms; role at 20, text at 110, 210 and 310 (8 tokens in all), usage and [DONE] at 330.
ANSWER = RequestRecord(
    0,
    planned_ns=0,
    admitted_ns=0,
    sent_ns=10 * MS,
    done_ns=330 * MS,
    chunks=[
        ChunkStamp(20 * MS, "role"),
        ChunkStamp(110 * MS, "content"),
        ChunkStamp(210 * MS, "content"),
        ChunkStamp(310 * MS, "content"),
    ],
    output_tokens_server=8,
    output_tokens_retokenized=6,
    max_tokens=9,
)


@pytest.mark.parametrize(
    ("name", "ttft", "tpot", "itl", "e2el", "tokens"),
    [
        ("headrace", 110, 200 / 7, [100, 100], 310, 8),
        ("vllm", 10, 290 / 7, [90, 100, 100], 300, 8),
        ("vllm-2025", 100, 220 / 5, [100, 100], 320, 6),
        ("sglang", 100, 220 / 7, [100, 100], 320, 8),
        ("guidellm", 100, 300 / 8, [200 / 7], 320, 8),
        ("aiperf", 100, None, [200 / 5], 300, 6),
        ("inference-perf", 100, 200 / 5, [100, 100, 0, 0, 0], 320, 6),
        ("loadgen", 110, 220 / 7, [], 330, 8),
        ("genai-bench", 100, 220 / 7, [], 320, 8),
        ("hf", 100, None, [200 / 5], 320, 6),
        ("llmperf", 100, None, [100], 320, 6),
    ],
)
def test_what_each_tool_says(
    name: str, ttft: float, tpot: float | None, itl: list[float], e2el: float, tokens: int
) -> None:
    found = figures(name, [ANSWER], 1.0)
    in_ms = {figure: [pytest.approx(1e3 * value) for value in values] for figure, values in found.values_s.items()}
    assert in_ms == {"ttft": [ttft], "tpot": [] if tpot is None else [tpot], "itl": itl, "e2el": [e2el]}
    assert found.tokens == tokens


def test_every_tool_has_an_answer_above() -> None:
    assert len(TOOLS) == 11
    with pytest.raises(ConfigError, match="guidellm"):
        tool("wrk")


def test_what_a_tool_falls_back_to_without_a_count() -> None:
    uncounted = RequestRecord(
        0, 0, sent_ns=0, chunks=[ChunkStamp(1, "content"), ChunkStamp(2, "content")], max_tokens=9
    )
    counts = {name: figures(name, [uncounted], 1.0).tokens for name in TOOLS}
    assert counts["sglang"] == 9 and counts["guidellm"] == 2 and counts["vllm"] == 1


def test_failures_and_the_time_divided_by() -> None:
    failed = RequestRecord(1, 0, error_class="http_5xx")
    ours, theirs = figures("vllm", [ANSWER, failed], 2.0), figures("aiperf", [ANSWER, failed], 2.0)
    assert (ours.failed, ours.span_s, theirs.span_s) == (1, 2.0, pytest.approx(0.3))
    assert figures("vllm", [failed], 2.0).metrics() == {"completed": 0, "failed": 1, "duration": 2.0}


def side(name: str, records: list[RequestRecord] | None = None) -> Side:
    return Side(name, name, figures(name, [ANSWER], 1.0).metrics(), records, 1.0)


def test_two_views_of_one_record_differ_by_definition_alone() -> None:
    first, second = side("vllm", [ANSWER]), side("guidellm", [ANSWER])
    found = {one.key: one for one in differences(first, second)}
    tpot = found["mean_tpot_ms"]
    assert tpot.total == pytest.approx((300 / 8) / (290 / 7) - 1) == tpot.by_definition
    assert tpot.left == pytest.approx(0) and "contains TTFT" in tpot.reasons[0]
    assert "at most 0.0% is left" in verdict(list(found.values()), first, second)


def test_what_definitions_do_not_explain_is_left() -> None:
    first = side("vllm", [ANSWER])
    second = Side("theirs", "guidellm", {"mean_tpot_ms": 2 * 300 / 8})
    (tpot,) = (one for one in differences(first, second) if one.key == "mean_tpot_ms")
    assert tpot.left == pytest.approx(1.0)


def test_without_raw_records_the_reasons_are_words_only() -> None:
    first, second = side("vllm"), side("sglang")
    found = differences(first, second)
    assert all(one.by_definition is None for one in found) and any(one.reasons for one in found)
    assert "neither side kept raw records" in verdict(found, first, second)
    same = side("vllm")
    assert "agree within" in verdict(differences(first, same), first, same)
