"""Metrics straight from a simulation's columns: the same figures as from its records, a hundred times as fast.

The gaps between tokens are the durations of steps, each as often as sequences got a token in that step and in the one
before; so a quantile over 200,000 gaps is a weighted quantile over the steps.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from headrace.lab.metrics.result import PERCENTILES
from headrace.lab.metrics.vllm import percentile_word

if TYPE_CHECKING:
    from headrace.lab.sim.outcome import Outcome

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def metrics(outcome: Outcome) -> dict[str, float]:
    """By the keys and definitions of `run_result_from_records`."""
    served, traffic = outcome.served, outcome.traffic
    completed = int(served.sum())
    duration = outcome.duration_s
    found: dict[str, float] = {"duration": duration, "completed": completed, "failed": len(served) - completed}
    if not completed:
        return found
    prompts, outputs = int(traffic.prompt_tokens[served].sum()), int(traffic.output_tokens[served].sum())
    ttft, e2e, tpot = outcome.ttft_s, outcome.e2e_s, outcome.tpot_s
    tpot = tpot[~np.isnan(tpot)]
    found |= {
        "total_input_tokens": prompts,
        "total_output_tokens": outputs,
        "request_throughput": completed / duration,
        "output_throughput": outputs / duration,
        "total_token_throughput": (prompts + outputs) / duration,
        "max_output_tokens_per_s": _busiest_second(outcome),
        "max_concurrent_requests": _most_concurrent(outcome),
    }
    found |= summary("ttft", ttft)
    if len(tpot):
        found |= summary("tpot", tpot)
    gaps, counts = token_gaps_s(outcome)
    if len(gaps):
        found |= summary("itl", gaps, counts)
    found |= summary("e2el", e2e)
    late = ((outcome.sent_ns - traffic.planned_ns) / 1e9)[served]
    ours = {"ttft_planned": ttft + late, "ttft_visible": ttft, "client_lag": late, "e2e_planned": e2e + late}
    if len(stalls := _stalls_s(outcome)):
        ours["stall"] = stalls
    for name, values in ours.items():
        found[f"mean_{name}_ms"] = 1e3 * float(np.mean(values))
        found[f"median_{name}_ms"] = 1e3 * float(np.median(values))
        found[f"p99_{name}_ms"] = 1e3 * float(np.percentile(values, 99))
    found["mean_tokens_per_chunk"] = 1.0
    found["tpot_undefined"] = completed - len(tpot)
    return found


def summary(name: str, values_s: Floats, counts: Ints | None = None) -> dict[str, float]:
    """vLLM's statistics in milliseconds; with `counts`, each value stands for so many."""
    values = values_s * 1e3
    if counts is None:
        order = np.sort(values)
        counts = np.ones(len(order), np.int64)
        mean, deviation = float(np.mean(values)), float(np.std(values))
    else:
        at = np.argsort(values, kind="stable")
        order, counts = values[at], counts[at]
        mean = float(np.average(order, weights=counts))
        deviation = float(np.sqrt(np.average((order - mean) ** 2, weights=counts)))
    found = {f"mean_{name}_ms": mean}
    points = weighted_percentiles(order, counts, (50.0, *PERCENTILES))
    found[f"median_{name}_ms"] = points[0]
    found[f"std_{name}_ms"] = deviation
    for p, value in zip(PERCENTILES, points[1:], strict=True):
        found[f"p{percentile_word(p)}_{name}_ms"] = value
    return found


def weighted_percentiles(ordered: Floats, counts: Ints, points: Iterable[float]) -> list[float]:
    """numpy's linear percentiles of the sorted values, each repeated `counts` times."""
    ends = np.cumsum(counts)
    total = int(ends[-1])
    found = []
    for p in points:
        position = p / 100 * (total - 1)
        low = int(position)
        a = ordered[np.searchsorted(ends, low, "right")]
        b = ordered[np.searchsorted(ends, min(low + 1, total - 1), "right")]
        found.append(float(a + (b - a) * (position - low)))
    return found


def token_gaps_s(outcome: Outcome) -> tuple[Floats, Ints]:
    """Times between a request's tokens, with how often each occurs, over the served requests."""
    ends, runs = outcome.step("end_ns"), _served_runs(outcome)
    if not len(runs):
        return np.zeros(0), np.zeros(0, np.int64)
    # Inside a run: step s closes a gap for everyone who also got a token in step s - 1.
    first, count = runs[:, 1], runs[:, 2]
    weight = np.zeros(len(ends) + 1, np.int64)
    np.add.at(weight, first + 1, 1)
    np.add.at(weight, first + count, -1)
    weight = np.cumsum(weight)[:-1]
    inside = np.flatnonzero(weight)
    gaps, counts = np.diff(ends, prepend=0)[inside], weight[inside]
    # Between two runs of one request: it waited, or was preempted.
    again = np.flatnonzero(runs[1:, 0] == runs[:-1, 0])
    between = ends[first[again + 1]] - ends[first[again] + count[again] - 1]
    return np.concatenate([gaps, between]) / 1e9, np.concatenate([counts, np.ones(len(between), np.int64)])


def _served_runs(outcome: Outcome) -> Ints:
    runs = outcome.runs
    return runs[outcome.served[runs[:, 0]]]


def _stalls_s(outcome: Outcome) -> Floats:
    """The longest gap of each served request that has one."""
    ends, runs = outcome.step("end_ns"), _served_runs(outcome)
    longest = np.full(len(outcome.traffic), -1, np.int64)
    if len(runs):
        gaps = np.append(np.diff(ends, prepend=0), 0)
        long = runs[runs[:, 2] > 1]
        if len(long):
            bounds = np.stack([long[:, 1] + 1, long[:, 1] + long[:, 2]], axis=1).ravel()
            np.maximum.at(longest, long[:, 0], np.maximum.reduceat(gaps, bounds)[::2])
        again = np.flatnonzero(runs[1:, 0] == runs[:-1, 0])
        between = ends[runs[again + 1, 1]] - ends[runs[again, 1] + runs[again, 2] - 1]
        np.maximum.at(longest, runs[again, 0], between)
    return longest[longest >= 0] / 1e9


def _busiest_second(outcome: Outcome) -> float:
    """Tokens in the fullest second, counted from the first send."""
    served = outcome.served
    weight = np.zeros(len(outcome.steps) + 1, np.int64)
    runs = _served_runs(outcome)
    np.add.at(weight, runs[:, 1], 1)
    np.add.at(weight, runs[:, 1] + runs[:, 2], -1)
    tokens = np.cumsum(weight)[:-1]
    origin = int(outcome.sent_ns[served].min())
    second = (outcome.step("end_ns") - origin) // 1_000_000_000
    has = tokens > 0
    return float(np.bincount(second[has], weights=tokens[has]).max())


def _most_concurrent(outcome: Outcome) -> int:
    """Most requests at one time, over the half-open intervals [sent, last token)."""
    served = outcome.served
    times = np.concatenate([outcome.sent_ns[served], outcome.ended_ns[served]])
    change = np.repeat([1, -1], int(served.sum()))
    order = np.lexsort((change, times))  # an end sorts before a start at the same time
    return int(np.cumsum(change[order]).max())
