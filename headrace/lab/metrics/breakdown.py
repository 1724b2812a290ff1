"""Where a request's time went, by the server's step log: each TTFT in four parts, each long gap with its cause.

Exact, for a server that names the requests of every step (`headrace serve --step-log FILE --step-log-requests`).  For
others `aggregate_split` has means from their own histograms, which is less, and says so.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from headrace.lab.metrics.latency import VISIBLE
from headrace.lab.records.schema import RequestRecord

# A gap is long when it is so many times the run's median, and nobody would notice one that is below the floor.
LONG_FACTOR = 3.0
LONG_FLOOR_NS = 5_000_000
# Clocks of one machine agree to the jitter of reading them; apart by more, they are two clocks.
SAME_CLOCK_NS = 5_000_000
PARTS = ("client", "network", "queue", "prefill")
CAUSES = ("prefill", "decode", "preempted", "left_out", "no_step")


@dataclass(frozen=True, slots=True)
class Step:
    """One step on the client's clock; `chunks` maps a request's id to (first position, length)."""

    start_ns: int
    end_ns: int
    prefill_tokens: int
    decode_tokens: int
    chunks: Mapping[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TtftSplit:
    """One TTFT from the planned start, in nanoseconds; the parts add up to it.

    client   planned to sent: the client's own lag and concurrency limit
    network  connecting, and from the end of the step that made the first token to its stamp: the server's way out of
             the engine, the wire, the client's stamp
    queue    sent (or connected) to the first step that computes the prompt: the way in, tokenising, waiting
    prefill  from there to the end of the step that makes the first token; other requests share its steps
    """

    index: int
    client: int
    network: int
    queue: int
    prefill: int


@dataclass(frozen=True, slots=True)
class Gap:
    """A long gap between two chunks of one answer, and what the server did in it.

    spent_ns  nanoseconds by cause: prefill (steps that computed others' prompts), decode (steps of decodes alone that
              this request was in), preempted (it had lost its blocks, or computed them again), left_out (decode steps
              without it), no_step (no step at all: the server stood still, or held text back)
    """

    index: int
    start_ns: int
    length_ns: int
    spent_ns: Mapping[str, int]

    @property
    def cause(self) -> str:
        return max(CAUSES, key=lambda cause: self.spent_ns.get(cause, 0))


def read_steps(path: Path, unix_minus_client_ns: int) -> list[Step]:
    """The steps of a log (and of its older half beside it) on the client's clock, in order.

    unix_minus_client_ns  wall time minus the client's monotonic clock, which tells whether both clocks are one
    Damaged lines are left out: a server that was killed leaves half of one.
    """
    steps: list[Step] = []
    for part in (path.with_name(path.name + ".1"), path):
        if part.is_file():
            with part.open(encoding="utf-8", errors="replace") as lines:
                steps += _steps(lines, unix_minus_client_ns)
    steps.sort(key=lambda step: step.start_ns)
    return steps


def _steps(lines: Iterable[str], unix_minus_client_ns: int) -> Iterable[Step]:
    shift_ns = 0
    for line in lines:
        try:
            row: Any = json.loads(line)
            if "schema" in row:
                apart = round((row["unix_s"] - row["monotonic_s"]) * 1e9) - unix_minus_client_ns
                shift_ns = apart if abs(apart) > SAME_CLOCK_NS else 0
            elif "step" in row:
                yield Step(
                    round(row["start_s"] * 1e9) + shift_ns,
                    round(row["end_s"] * 1e9) + shift_ns,
                    row["prefill_tokens"],
                    row["decode_tokens"],
                    {name: (start, length) for name, start, length in row.get("chunks", ())},
                )
        except (ValueError, KeyError, TypeError):
            continue


class Timeline:
    """Steps, and which of them each request was in."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps = steps
        self._starts = [step.start_ns for step in steps]
        self._of: dict[str, list[int]] = {}
        for number, step in enumerate(steps):
            for name in step.chunks:
                self._of.setdefault(name, []).append(number)

    def ttft(self, record: RequestRecord) -> TtftSplit | None:
        """None for a request without a first token, or that the log does not know."""
        name = self._name(record)
        first_ns = next((chunk.t_ns for chunk in record.chunks if chunk.kind in VISIBLE), None)
        prompt = record.prompt_tokens_server
        if name is None or first_ns is None or prompt is None:
            return None
        mine = [self._steps[number] for number in self._of[name]]
        made = next((step for step in mine if sum(step.chunks[name]) >= prompt), None)
        if made is None:
            return None
        ready_ns = record.extra.get("connected_ns", record.sent_ns)
        return TtftSplit(
            record.index,
            client=record.sent_ns - record.planned_ns,
            network=ready_ns - record.sent_ns + first_ns - made.end_ns,
            queue=mine[0].start_ns - ready_ns,
            prefill=made.end_ns - mine[0].start_ns,
        )

    def gaps(self, record: RequestRecord, longer_than_ns: float) -> list[Gap]:
        """The record's long gaps with what the server did in them; none for a request that the log does not know."""
        name = self._name(record)
        if name is None:
            return []
        times = [chunk.t_ns for chunk in record.chunks if chunk.kind in VISIBLE]
        return [
            Gap(record.index, start, end - start, self._spent(name, start, end))
            for start, end in pairwise(times)
            if end - start > longer_than_ns
        ]

    def _name(self, record: RequestRecord) -> str | None:
        answer = record.extra.get("response_id")
        return next((name for name in (f"{answer}-0", answer) if name in self._of), None)

    def _spent(self, name: str, start_ns: int, end_ns: int) -> dict[str, int]:
        spent = dict.fromkeys(CAUSES, 0)
        mine = self._of[name]
        # Positions only grow, but for a request that lost its blocks and computes them again.
        reached = max((self._steps[i].chunks[name][0] for i in mine if self._starts[i] < start_ns), default=-1)
        lost = any(self._steps[i].chunks[name][0] <= reached for i in mine if start_ns <= self._starts[i] < end_ns)
        number = max(0, bisect_left(self._starts, start_ns) - 1)
        while number < len(self._steps) and self._starts[number] < end_ns:
            step = self._steps[number]
            shared = min(step.end_ns, end_ns) - max(step.start_ns, start_ns)
            if shared > 0:
                again = name in step.chunks and self._starts[number] >= start_ns and step.chunks[name][0] <= reached
                spent[_cause(step, name, lost=lost, again=again)] += shared
            number += 1
        spent["no_step"] = max(0, end_ns - start_ns - sum(spent.values()))
        return spent


def _cause(step: Step, name: str, *, lost: bool, again: bool) -> str:
    if again or (lost and name not in step.chunks):
        return "preempted"
    if step.prefill_tokens:
        return "prefill"
    return "decode" if name in step.chunks else "left_out"


@dataclass(frozen=True, slots=True)
class Explanation:
    """All splits and all long gaps of a run."""

    splits: Sequence[TtftSplit]
    gaps: Sequence[Gap]
    successes: int

    def metrics(self) -> dict[str, float]:
        """`mean_ttft_PART_ms`, `p99_ttft_PART_ms`; `long_gaps` and `long_gap_CAUSE_share` (of their time, 0 to 1)."""
        found: dict[str, float] = {"explained_share": len(self.splits) / self.successes if self.successes else 0.0}
        for part in PARTS if self.splits else ():
            values = [getattr(split, part) / 1e6 for split in self.splits]
            found[f"mean_ttft_{part}_ms"] = float(np.mean(values))
            found[f"p99_ttft_{part}_ms"] = float(np.percentile(values, 99))
        total = sum(gap.length_ns for gap in self.gaps)
        found["long_gaps"] = float(len(self.gaps))
        for cause in CAUSES if total else ():
            found[f"long_gap_{cause}_share"] = sum(gap.spent_ns.get(cause, 0) for gap in self.gaps) / total
        return found


def explain_run(records: Sequence[RequestRecord], steps: Sequence[Step]) -> Explanation:
    """Explain every success that the log knows."""
    timeline = Timeline(steps)
    good = [record for record in records if record.ok]
    gaps = [b - a for record in good for a, b in pairwise([c.t_ns for c in record.chunks if c.kind in VISIBLE])]
    bar_ns = max(LONG_FACTOR * float(np.median(gaps)), LONG_FLOOR_NS) if gaps else LONG_FLOOR_NS
    splits = [split for record in good if (split := timeline.ttft(record)) is not None]
    return Explanation(splits, [gap for record in good for gap in timeline.gaps(record, bar_ns)], len(good))


def aggregate_split(records: Sequence[RequestRecord], served: Mapping[str, float]) -> dict[str, float]:
    """Means of the four parts from a server's own histograms (`served_between`): `mean_ttft_PART_ms`; network is what
    is left over, the server's front end included.  Empty without histograms of queue and prefill."""
    if "mean_queue_ms" not in served or "mean_prefill_ms" not in served:
        return {}
    firsts = [
        (record, next((chunk.t_ns for chunk in record.chunks if chunk.kind in VISIBLE), None))
        for record in records
        if record.ok
    ]
    seen = [(record, first) for record, first in firsts if first is not None]
    if not seen:
        return {}
    client = float(np.mean([record.sent_ns - record.planned_ns for record, _ in seen])) / 1e6
    ttft = float(np.mean([first - record.planned_ns for record, first in seen])) / 1e6
    queue, prefill = served["mean_queue_ms"], served["mean_prefill_ms"]
    return {
        "mean_ttft_client_ms": client,
        "mean_ttft_network_ms": ttft - client - queue - prefill,
        "mean_ttft_queue_ms": queue,
        "mean_ttft_prefill_ms": prefill,
    }
