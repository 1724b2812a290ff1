"""A server's own account of a run: counters before and after, gauges on the way, under one name for every engine.

Names have changed between vLLM's eras (V0, early V1, V1), and SGLang has others; the first that a server offers counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import fmean

from headrace.lab.campaign.exposition import rises, totals

GAUGES: dict[str, tuple[str, ...]] = {
    "running": ("vllm:num_requests_running", "sglang:num_running_reqs"),
    "waiting": ("vllm:num_requests_waiting", "sglang:num_queue_reqs"),
    "kv_use": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc", "sglang:token_usage"),
}
COUNTERS: dict[str, tuple[str, ...]] = {
    "num_preemptions": ("vllm:num_preemptions_total",),
    "prompt_tokens": ("vllm:prompt_tokens_total", "sglang:prompt_tokens_total"),
    "generation_tokens": ("vllm:generation_tokens_total", "sglang:generation_tokens_total"),
    "cache_queries": ("vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total"),
    "cache_hits": ("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total"),
}
# Histograms of seconds: what is kept of each is its sum and its count.
TIMES: dict[str, tuple[str, ...]] = {
    "queue": ("vllm:request_queue_time_seconds", "vllm:time_in_queue_requests", "sglang:queue_time_seconds"),
    "prefill": ("vllm:request_prefill_time_seconds",),
    "decode": ("vllm:request_decode_time_seconds",),
    "ttft": ("vllm:time_to_first_token_seconds", "sglang:time_to_first_token_seconds"),
    "itl": (
        *("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"),
        *("sglang:inter_token_latency_seconds", "sglang:time_per_output_token_seconds"),
    ),
}
# Tokens of each step, as a histogram.
STEP_TOKENS = "vllm:iteration_tokens_total"

_HISTOGRAMS = (*chain.from_iterable(TIMES.values()), STEP_TOKENS)
WANTED = frozenset(
    (
        *chain.from_iterable(GAUGES.values()),
        *chain.from_iterable(COUNTERS.values()),
        *(f"{name}{part}" for name in _HISTOGRAMS for part in ("_sum", "_count")),
    )
)
# Of several engines' shares of their caches the fullest counts; everything else adds up.
_LARGEST = frozenset(GAUGES["kv_use"])


@dataclass(frozen=True, slots=True)
class Scrape:
    """What a server counted at one instant of the lab's monotonic clock; `values` under the server's names."""

    t_ns: int
    values: Mapping[str, float]

    def to_line(self) -> str:
        return json.dumps({"t_ns": self.t_ns, **self.values}, separators=(",", ":")) + "\n"


def scrape(exposition: str, t_ns: int) -> Scrape:
    return Scrape(t_ns, totals(exposition, WANTED, largest=_LARGEST))


def read_scrapes(path: Path) -> list[Scrape]:
    """Those that a run left, in the order of time; a torn last line (the lab was killed) is not one."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            values = json.loads(line)
            found.append(Scrape(values.pop("t_ns"), values))
        except (ValueError, KeyError):
            continue
    return found


def server_metrics(
    before: str, after: str, scrapes: Sequence[Scrape] = (), window_ns: tuple[int, int] | None = None
) -> dict[str, float]:
    """A run's figures as its server counted them; what it does not count is absent.

    before, after  /metrics before the warm-up and after the last answer
    scrapes        on the way, with `window_ns`, the run's beginning and end on their clock.  The last one before the
                   run replaces `before`, so that the warm-up stays out
    Means of seconds are in `server_mean_{queue,prefill,decode,ttft,itl}_ms`; `server_mean_step_tokens` and
    `server_num_steps` are of steps; `server_{mean,max}_{running,waiting,kv_use}` are over the scrapes of the run.
    """
    start = totals(before, WANTED, largest=_LARGEST)
    inside: Sequence[Scrape] = ()
    if window_ns is not None:
        earlier = [one for one in scrapes if one.t_ns <= window_ns[0]]
        inside = [one for one in scrapes if window_ns[0] < one.t_ns <= window_ns[1]]
        start = dict(earlier[-1].values) if earlier else start
    counted = rises(start, totals(after, WANTED, largest=_LARGEST))
    found = {f"server_{key}": value for key, names in COUNTERS.items() if (value := _first(counted, names)) is not None}
    queries, hits = found.pop("server_cache_queries", 0.0), found.pop("server_cache_hits", None)
    if queries > 0 and hits is not None:
        found["server_prefix_cache_hit_rate"] = hits / queries
    for key, names in TIMES.items():
        mean = next((mean for name in names if (mean := _mean(counted, name)) is not None), None)
        if mean is not None:
            found[f"server_mean_{key}_ms"] = 1000 * mean
    step = _mean(counted, STEP_TOKENS)
    if step is not None:
        found |= {"server_mean_step_tokens": step, "server_num_steps": counted[f"{STEP_TOKENS}_count"]}
    for key, names in GAUGES.items():
        values = [value for one in inside if (value := _first(one.values, names)) is not None]
        if values:
            found |= {f"server_mean_{key}": fmean(values), f"server_max_{key}": max(values)}
    return found


def tokens_counted(values: Mapping[str, float]) -> float | None:
    """Tokens in and out of the server so far: the witness that it computes.  None where it counts neither."""
    counts = [_first(values, COUNTERS[key]) for key in ("prompt_tokens", "generation_tokens")]
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _first(values: Mapping[str, float], names: Iterable[str]) -> float | None:
    return next((values[name] for name in names if name in values), None)


def _mean(counted: Mapping[str, float], name: str) -> float | None:
    count = counted.get(f"{name}_count", 0.0)
    return counted[f"{name}_sum"] / count if count > 0 and f"{name}_sum" in counted else None
