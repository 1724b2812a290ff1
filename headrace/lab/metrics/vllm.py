"""vLLM's metrics, by the definitions in its `benchmarks/serve.py`, from our records.

A request is timed from its sending, at each message with choices (a role message counts).  Latency ends at the last
such message.  ITL pools every gap between messages, so a bundle of tokens is one gap.  Percentiles interpolate
linearly, the standard deviation has ddof 0, and an empty list gives 0.0.

One deliberate difference: a stream that ends in an error event or before its last message is a failure here, while
vLLM's client counts it as a success as soon as one message had choices.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from headrace.errors import ConfigError
from headrace.lab.metrics.latency import output_tokens
from headrace.lab.records.schema import RequestRecord

METRICS = ("ttft", "tpot", "itl", "e2el")
GOODPUT_METRICS = ("ttft", "tpot", "e2el")


@dataclass(frozen=True, slots=True)
class VllmOutput:
    """One request as vLLM's client would have noted it: seconds; a failure has zero lengths and latency.

    queue_time_s is the wait for the client's concurrency limit; vLLM counts it from the request's arrival.
    """

    success: bool
    start_s: float
    ttft_s: float
    itl_s: tuple[float, ...]
    latency_s: float
    queue_time_s: float
    prompt_len: int
    output_len: int
    text: str
    error: str

    @property
    def tpot_s(self) -> float:
        """0 for an answer of one token: such a request has no TPOT, and meets every goal for it."""
        return (self.latency_s - self.ttft_s) / (self.output_len - 1) if self.output_len > 1 else 0.0


@dataclass(frozen=True, slots=True)
class VllmMetrics:
    """The aggregates.  Throughputs are per second of `duration_s`; `values_s` holds each metric's raw values."""

    outputs: tuple[VllmOutput, ...]
    duration_s: float
    completed: int
    failed: int
    total_input: int
    total_output: int
    request_goodput: float | None
    max_output_tokens_per_s: float
    max_concurrent_requests: int
    values_s: Mapping[str, Sequence[float]]

    @property
    def request_throughput(self) -> float:
        return self._per_second(self.completed)

    @property
    def output_throughput(self) -> float:
        return self._per_second(self.total_output)

    @property
    def total_token_throughput(self) -> float:
        return self._per_second(self.total_input + self.total_output)

    def statistics_ms(self, metric: str, percentiles: Iterable[float]) -> dict[str, float]:
        """`mean_X_ms`, `median_X_ms`, `std_X_ms` and one `p{P}_X_ms` a percentile; 0.0 for an empty list."""
        values = np.asarray(self.values_s[metric] or [0.0]) * 1e3
        statistics = {
            f"mean_{metric}_ms": float(np.mean(values)),
            f"median_{metric}_ms": float(np.median(values)),
            f"std_{metric}_ms": float(np.std(values)),
        }
        for p in percentiles:
            statistics[f"p{percentile_word(p)}_{metric}_ms"] = float(np.percentile(values, p))
        return statistics

    def _per_second(self, count: float) -> float:
        return count / self.duration_s if self.duration_s > 0 else 0.0


def percentile_word(p: float) -> str:
    """99.0 -> "99", 99.9 -> "99.9"."""
    return str(int(p)) if int(p) == p else str(p)


def parse_goodput(pairs: Sequence[str]) -> dict[str, float]:
    """`["ttft:200", "e2el:5000"]` -> milliseconds by metric.  Raises ConfigError as the flag's own words."""
    goals: dict[str, float] = {}
    for pair in pairs:
        name, _, value = pair.partition(":")
        try:
            goal_ms = float(value)
        except ValueError:
            goal_ms = math.nan
        if name not in GOODPUT_METRICS or not goal_ms >= 0:
            raise ConfigError(
                f"--goodput takes NAME:MILLISECONDS with a name of {', '.join(GOODPUT_METRICS)}"
                f" (ttft:200 e2el:5000), not {pair!r}"
            )
        goals[name] = goal_ms
    return goals


def vllm_output(record: RequestRecord, *, arrival_ns: int | None = None) -> VllmOutput:
    """One record in vLLM's terms.  `arrival_ns` overrides `planned_ns` as the start of the wait in the client."""
    queued_ns = record.sent_ns - (record.planned_ns if arrival_ns is None else arrival_ns)
    times = [chunk.t_ns for chunk in record.chunks]
    return VllmOutput(
        success=record.ok,
        start_s=record.sent_ns / 1e9,
        ttft_s=(times[0] - record.sent_ns) / 1e9 if times else 0.0,
        itl_s=tuple((b - a) / 1e9 for a, b in pairwise(times)),
        latency_s=(times[-1] - record.sent_ns) / 1e9 if times and record.ok else 0.0,
        queue_time_s=max(0, queued_ns) / 1e9,
        prompt_len=(record.prompt_tokens_server or record.prompt_tokens_client or 0) if record.ok else 0,
        # Without a count from either side vLLM's client takes 1.
        output_len=(output_tokens(record) or 1) if record.ok else 0,
        text=record.output_text or "",
        error=record.error or "",
    )


def vllm_metrics(
    records: Sequence[RequestRecord],
    duration_s: float,
    *,
    goodput_ms: Mapping[str, float] | None = None,
    closed_loop_start_ns: int | None = None,
) -> VllmMetrics:
    """Aggregate as vLLM does.

    duration_s            from just before the first send to the end of the last answer
    closed_loop_start_ns  start of a run at infinite rate with a concurrency limit: all its requests arrive then
    """
    outputs = tuple(vllm_output(record, arrival_ns=closed_loop_start_ns) for record in records)
    good = [output for output in outputs if output.success]
    goodput = None
    if goodput_ms:
        met = sum(all(_value(output, name) <= goal / 1e3 for name, goal in goodput_ms.items()) for output in good)
        goodput = met / duration_s if duration_s > 0 else 0.0
    return VllmMetrics(
        outputs=outputs,
        duration_s=duration_s,
        completed=len(good),
        failed=len(outputs) - len(good),
        total_input=sum(output.prompt_len for output in good),
        total_output=sum(output.output_len for output in good),
        request_goodput=goodput,
        max_output_tokens_per_s=_busiest_second(good),
        max_concurrent_requests=_most_concurrent(good),
        values_s={
            "ttft": [output.ttft_s for output in good],
            "tpot": [output.tpot_s for output in good if output.output_len > 1],
            "itl": [gap for output in good for gap in output.itl_s],
            "e2el": [output.latency_s for output in good],
        },
    )


def _value(output: VllmOutput, name: str) -> float:
    return {"ttft": output.ttft_s, "tpot": output.tpot_s, "e2el": output.latency_s}[name]


def _busiest_second(outputs: Sequence[VllmOutput]) -> float:
    """Messages (not tokens) in the fullest one-second bucket, counted from the earliest start."""
    if not outputs:
        return 0.0
    origin = min(output.start_s for output in outputs)
    counts: dict[int, int] = {}
    for output in outputs:
        t = output.start_s + output.ttft_s
        for gap in (0.0, *output.itl_s):
            t += gap
            counts[int(t - origin)] = counts.get(int(t - origin), 0) + 1
    return float(max(counts.values()))


def _most_concurrent(outputs: Sequence[VllmOutput]) -> int:
    """Most requests at one time, over the half-open intervals [start, start + latency)."""
    edges = [(output.start_s, 1) for output in outputs]
    edges += [(output.start_s + output.latency_s, -1) for output in outputs]
    running = most = 0
    for _, change in sorted(edges):  # an end sorts before a start at the same time
        running += change
        most = max(most, running)
    return most
