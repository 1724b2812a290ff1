"""Where time went: a small server of three steps, and what a request's first token and long gaps were made of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headrace.lab.findings.where_time_goes import long_gaps, time_split
from headrace.lab.findings.words_of_time import gap_line, split_line
from headrace.lab.metrics.breakdown import Step, Timeline, aggregate_split, explain_run, read_steps
from headrace.lab.records.schema import ChunkStamp, RequestRecord

MS = 1_000_000


def step(start_ms: int, end_ms: int, prefill: int = 0, **chunks: tuple[int, int]) -> Step:
    return Step(start_ms * MS, end_ms * MS, prefill, 0, {f"{name}-0": chunk for name, chunk in chunks.items()})


def answer(*stamps_ms: int, name: str = "a", prompt: int = 4, connected_ms: int | None = None) -> RequestRecord:
    extra: dict[str, object] = {"response_id": name}
    if connected_ms is not None:
        extra["connected_ns"] = connected_ms * MS
    return RequestRecord(
        0,
        planned_ns=0,
        sent_ns=5 * MS,
        chunks=[ChunkStamp(t * MS, "content") for t in stamps_ms],
        prompt_tokens_server=prompt,
        output_tokens_server=len(stamps_ms),
        extra=extra,
    )


# Two chunks of a's prompt, then decodes; the third decode shares a step with b's long prompt.
STEPS = [
    step(20, 30, 2, a=(0, 2)),
    step(30, 40, 2, a=(2, 2)),
    step(40, 50, 0, a=(4, 1)),
    step(50, 150, 512, a=(5, 1), b=(0, 512)),
    step(150, 160, 0, a=(6, 1), b=(512, 1)),
]


def test_a_ttft_is_four_parts_that_add_up() -> None:
    split = Timeline(STEPS).ttft(answer(43, 52, 153, 162, connected_ms=8))
    assert split is not None
    parts = (split.client, split.network, split.queue, split.prefill)
    assert [part // MS for part in parts] == [5, 3 + 3, 12, 20] and sum(parts) == 43 * MS


def test_a_long_gap_is_the_prompt_that_was_computed_in_it() -> None:
    explanation = explain_run([answer(43, 52, 153, 162)], STEPS)
    (gap,) = explanation.gaps
    assert gap.cause == "prefill" and gap.length_ns == 101 * MS
    assert gap.spent_ns["prefill"] == 98 * MS and gap.spent_ns["decode"] == 3 * MS
    metrics = explanation.metrics()
    assert metrics["explained_share"] == 1 and metrics["long_gap_prefill_share"] == pytest.approx(98 / 101)
    assert str(split_line(metrics)).startswith("mean TTFT from the planned start 43.0 ms = client 5")
    assert "97% steps that computed prompts" in str(gap_line(metrics)).replace(" %", "%")


@pytest.mark.parametrize(
    ("between", "cause"),
    [
        ([step(60, 160, 0, b=(9, 1))], "left_out"),
        ([], "no_step"),
        ([step(60, 120, 0, b=(9, 1)), step(120, 160, 6, a=(0, 6))], "preempted"),
    ],
)
def test_other_causes_of_a_long_gap(between: list[Step], cause: str) -> None:
    steps = [*STEPS[:3], *between, step(160, 170, 0, a=(5, 1))]
    (gap,) = Timeline(steps).gaps(answer(43, 52, 172), 20 * MS)
    assert gap.cause == cause


def test_a_request_that_the_log_does_not_know_is_not_explained() -> None:
    explanation = explain_run([answer(43, 52, name="other")], STEPS)
    assert explanation.metrics() == {"explained_share": 0.0, "long_gaps": 0.0}


def test_a_log_is_read_with_its_older_half_and_on_the_clients_clock(tmp_path: Path) -> None:
    def lines(monotonic_s: float, start_s: float, number: int) -> str:
        row = {"step": number, "start_s": start_s, "end_s": start_s + 1, "prefill_tokens": 1, "decode_tokens": 0}
        header = {"schema": "headrace.step-log/1", "monotonic_s": monotonic_s, "unix_s": 1000.0 + monotonic_s}
        return json.dumps(header) + "\n" + json.dumps({**row, "chunks": [["a-0", 0, 4]]}) + '\n{"step": 3, "sta'

    (tmp_path / "steps.jsonl.1").write_text(lines(0.0, 1.0, 1))
    (tmp_path / "steps.jsonl").write_text(lines(5.0, 5.0, 2))
    same = read_steps(tmp_path / "steps.jsonl", 1000 * 1_000_000_000 + 2 * MS)
    assert [one.start_ns for one in same] == [1_000_000_000, 5_000_000_000] and same[0].chunks == {"a-0": (0, 4)}
    other = read_steps(tmp_path / "steps.jsonl", 990 * 1_000_000_000)
    assert other[0].start_ns == 11_000_000_000


def test_histograms_give_means_and_say_so() -> None:
    metrics = aggregate_split([answer(105), answer(205)], {"mean_queue_ms": 60.0, "mean_prefill_ms": 80.0})
    assert [round(metrics[f"mean_ttft_{part}_ms"]) for part in ("client", "network", "queue", "prefill")] == [
        5,
        10,
        60,
        80,
    ]
    assert "means of the server's own histograms" in str(split_line(metrics))
    assert aggregate_split([answer(105)], {"mean_queue_ms": 60.0}) == {}


def test_findings_tell_it_for_a_study() -> None:
    from headrace.lab.findings.table import build
    from headrace.lab.records.results import Cell, RunResult, Study

    explained = explain_run([answer(43, 52, 153, 162)], STEPS).metrics()
    base = {"duration": 1.0, "completed": 1.0, "mean_ttft_ms": 38.0}
    cells = tuple(Cell(name, {}, runs=(RunResult(name, {}, {**base, **explained}),)) for name in ("one", "two"))
    table = build(Study("s", "S", "measured", cells))
    (parts,) = time_split(table, None)
    assert "47% prefill" in parts.claim.replace(" %", "%") and parts.cells == ("one", "two") and not parts.caveats
    (gaps,) = long_gaps(table, None)
    assert "steps that computed prompts" in gaps.claim
