"""What the server counted during a run: /metrics before and after, as sums and means of exactly this run.

A server that somebody else uses at the same time counts their requests as well, and the figures say so by their count.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping

from headrace.lab.http import Peer

_SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{.*\})?\s+(?P<value>\S+)", re.MULTILINE)
# Our name -> the histogram's family, in vLLM's words and in SGLang's.
_PHASES = {
    "queue": ("vllm:request_queue_time_seconds", "sglang:queue_time_seconds"),
    "prefill": ("vllm:request_prefill_time_seconds",),
    "decode": ("vllm:request_decode_time_seconds",),
    "ttft": ("vllm:time_to_first_token_seconds", "sglang:time_to_first_token_seconds"),
    "e2e": ("vllm:e2e_request_latency_seconds", "sglang:e2e_request_latency_seconds"),
    "step_tokens": ("vllm:iteration_tokens_total",),
}
_COUNTERS = {
    "preemptions": "vllm:num_preemptions_total",
    "prefix_queries": "vllm:prefix_cache_queries_total",
    "prefix_hits": "vllm:prefix_cache_hits_total",
}


def scrape(base_url: str, headers: Mapping[str, str]) -> str:
    """The text of /metrics; empty when the server has none."""
    with contextlib.suppress(OSError), Peer(base_url, headers, timeout_s=5.0) as peer:
        status, body = peer.get("/metrics")
        if status == 200:
            return body.decode("utf-8", "replace")
    return ""


def served_between(before: str, after: str) -> dict[str, float]:
    """`mean_queue_ms`, `mean_prefill_ms`, ... and `count_*` of requests whose phase ended between two scrapes, and the
    counters' increases.  What the server does not count, or did not count in this time, is absent."""
    old, new = _totals(before), _totals(after)
    found: dict[str, float] = {}
    for name, families in _PHASES.items():
        for family in families:
            count = _increase(old, new, f"{family}_count")
            total = _increase(old, new, f"{family}_sum")
            if count and total is not None:
                found[f"count_{name}"] = count
                found["mean_step_tokens" if name == "step_tokens" else f"mean_{name}_ms"] = (
                    total / count if name == "step_tokens" else 1e3 * total / count
                )
                break
    for name, family in _COUNTERS.items():
        increase = _increase(old, new, family)
        if increase is not None:
            found[name] = increase
    return found


def _totals(exposition: str) -> dict[str, float]:
    """Every sample, summed over its labels (a server may have several engines); buckets are left out."""
    totals: dict[str, float] = {}
    for sample in _SAMPLE.finditer(exposition):
        if not sample["name"].endswith("_bucket"):
            with contextlib.suppress(ValueError):
                totals[sample["name"]] = totals.get(sample["name"], 0.0) + float(sample["value"])
    return totals


def _increase(old: Mapping[str, float], new: Mapping[str, float], name: str) -> float | None:
    """None where one of them is missing, or the counter began anew (a restart)."""
    if name not in new or name not in old or new[name] < old[name]:
        return None
    return new[name] - old[name]
