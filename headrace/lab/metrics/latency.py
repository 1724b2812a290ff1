"""Our own latencies: pure functions of records, counted from the planned start and from text that a user can see.

They differ from vLLM's (see `vllm.py`) where a wait would be hidden: the client's queue and lag belong to the latency,
a role or blank message is not a first token, and an undefined TPOT is left out and counted instead of being zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from headrace.lab.records.schema import RequestRecord

# What a user can see arriving; role and empty messages are the protocol's own.
VISIBLE = frozenset({"content", "reasoning", "tool_call"})

Percentile = float | None


def percentile(values: Sequence[float], p: float) -> Percentile:
    """Percentile by linear interpolation (numpy's default); None for no values."""
    return float(np.percentile(values, p)) if len(values) else None


@dataclass(frozen=True, slots=True)
class RequestLatency:
    """One successful request's latencies, in seconds; None where the definition does not apply.

    client_lag_s    sent - planned: wait in the client's own queue, and lateness of the client
    ttft_s          first visible chunk - planned
    ttft_sent_s     first visible chunk - sent
    ttf_event_s     first message with choices - sent: vLLM's event, also a role chunk
    tpot_s          (last - first visible chunk) / (n - 1), n = output tokens by the server, n > 1
    stall_s         longest gap between visible chunks
    e2e_s           last visible chunk - planned
    tokens_per_chunk  above 1, the gaps between chunks are not the times between tokens
    """

    client_lag_s: float
    ttft_s: float | None
    ttft_sent_s: float | None
    ttf_event_s: float | None
    tpot_s: float | None
    stall_s: float | None
    e2e_s: float | None
    tokens_per_chunk: float | None


def request_latency(record: RequestRecord) -> RequestLatency:
    """The latencies of one record.  Pure; any clock epoch."""
    visible = [chunk.t_ns for chunk in record.chunks if chunk.kind in VISIBLE]
    first, last = (visible[0], visible[-1]) if visible else (None, None)
    tokens = output_tokens(record)
    tpot_s = None
    if first is not None and last is not None and tokens is not None and tokens > 1:
        tpot_s = (last - first) / (tokens - 1) / 1e9
    return RequestLatency(
        client_lag_s=(record.sent_ns - record.planned_ns) / 1e9,
        ttft_s=_since(first, record.planned_ns),
        ttft_sent_s=_since(first, record.sent_ns),
        ttf_event_s=_since(record.chunks[0].t_ns if record.chunks else None, record.sent_ns),
        tpot_s=tpot_s,
        stall_s=max(((b - a) / 1e9 for a, b in pairwise(visible)), default=None),
        e2e_s=_since(last, record.planned_ns),
        tokens_per_chunk=tokens / len(visible) if tokens and visible else None,
    )


def output_tokens(record: RequestRecord) -> int | None:
    """The server's count, else the client's recount of the text, else unknown."""
    if record.output_tokens_server:
        return record.output_tokens_server
    return record.output_tokens_retokenized


def latency_summary(records: Sequence[RequestRecord]) -> dict[str, float]:
    """Aggregates in milliseconds over the successful requests, by key; a key without values is absent.

    `*_ttft_planned_ms`, `*_ttft_visible_ms` (from sending), `*_client_lag_ms`, `*_stall_ms`, `*_e2e_planned_ms` as
    mean, median and p99; `mean_tokens_per_chunk`; `tpot_undefined` counts successes with one token.
    """
    latencies = [request_latency(record) for record in records if record.ok]
    columns: dict[str, list[float | None]] = {
        "ttft_planned": [x.ttft_s for x in latencies],
        "ttft_visible": [x.ttft_sent_s for x in latencies],
        "client_lag": [x.client_lag_s for x in latencies],
        "stall": [x.stall_s for x in latencies],
        "e2e_planned": [x.e2e_s for x in latencies],
    }
    summary: dict[str, float] = {}
    for name, column in columns.items():
        values = [1e3 * value for value in column if value is not None]
        if values:
            summary[f"mean_{name}_ms"] = float(np.mean(values))
            summary[f"median_{name}_ms"] = float(np.median(values))
            summary[f"p99_{name}_ms"] = float(np.percentile(values, 99))
    bundles = [x.tokens_per_chunk for x in latencies if x.tokens_per_chunk is not None]
    if bundles:
        summary["mean_tokens_per_chunk"] = float(np.mean(bundles))
    if latencies:
        summary["tpot_undefined"] = float(sum(x.tpot_s is None for x in latencies))
    return summary


def _since(t_ns: int | None, start_ns: int) -> float | None:
    return None if t_ns is None else (t_ns - start_ns) / 1e9
