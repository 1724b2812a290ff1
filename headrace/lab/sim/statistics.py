"""Metrics straight from a simulation's columns: the same figures as from its records, a hundred times as fast.

The gaps between tokens are the durations of steps, each as often as sequences got a token in that step and in the one
before; so a quantile over 200,000 gaps is a weighted quantile over the steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
    gaps, counts = token_gaps_ns(outcome)
    if len(gaps):
        found |= gap_summary("itl", gaps, counts)
    found |= summary("e2el", e2e)
    late = ((outcome.sent_ns - traffic.planned_ns) / 1e9)[served]
    ours = {"ttft_planned": ttft + late, "ttft_visible": ttft, "client_lag": late, "e2e_planned": e2e + late}
    if len(stalls := _stalls_s(outcome)):
        ours["stall"] = stalls
    for name, values in ours.items():
        median, p99 = percentiles(len(values), np.sort(values).__getitem__, (50.0, 99.0))
        found[f"mean_{name}_ms"] = 1e3 * float(np.mean(values))
        found[f"median_{name}_ms"] = 1e3 * median
        found[f"p99_{name}_ms"] = 1e3 * p99
    found["mean_tokens_per_chunk"] = 1.0
    found["tpot_undefined"] = completed - len(tpot)
    return found


def summary(name: str, values_s: Floats) -> dict[str, float]:
    """vLLM's statistics in milliseconds."""
    values = values_s * 1e3
    ordered = np.sort(values)
    points = percentiles(len(values), lambda ranks: ordered[ranks], (50.0, *PERCENTILES))
    return _named(name, float(np.mean(values)), float(np.std(values)), points)


def gap_summary(name: str, gaps_ns: Ints, counts: Ints) -> dict[str, float]:
    """The same of gaps that occur `counts` times each."""
    values = gaps_ns / 1e9 * 1e3
    total = int(counts.sum())
    mean = float(values @ counts / total)
    deviation = float(np.sqrt((values - mean) ** 2 @ counts / total))
    ranked = _Ranked(gaps_ns, counts)
    points = percentiles(total, lambda ranks: ranked[ranks] / 1e9 * 1e3, (50.0, *PERCENTILES))
    return _named(name, mean, deviation, points)


def percentiles(total: int, at: Callable[[Ints], Floats], points: Iterable[float]) -> list[float]:
    """numpy's linear percentiles of `total` values, of which `at` gives those with the ranks it is asked for."""
    found = []
    for p in points:
        position = p / 100 * (total - 1)
        low = int(position)
        a, b = at(np.array([low, min(low + 1, total - 1)]))
        found.append(float(a + (b - a) * (position - low)))
    return found


class _Ranked:
    """values[ranks] as if each value were there `counts` times and all were sorted, without sorting them.

    A run at a low load has a hundred times as many steps as requests, and sorting them would take most of the time.
    """

    _BINS = 4096

    def __init__(self, values: Ints, counts: Ints) -> None:
        self._values, self._counts = values, counts
        low, width = int(values.min()), int(values.max()) - int(values.min()) + 1
        self._bin = ((values - low) * (self._BINS / width)).astype(np.int32)
        self._ends = np.cumsum(np.bincount(self._bin, weights=counts, minlength=self._BINS + 1)).astype(np.int64)

    def __getitem__(self, ranks: Ints) -> Ints:
        return np.array([self._value(int(rank)) for rank in ranks])

    def _value(self, rank: int) -> int:
        chosen = int(np.searchsorted(self._ends, rank, "right"))
        mine = np.flatnonzero(self._bin == chosen)
        mine = mine[np.argsort(self._values[mine])]
        before = int(self._ends[chosen - 1]) if chosen else 0
        return int(self._values[mine[np.searchsorted(np.cumsum(self._counts[mine]), rank - before, "right")]])


def _named(name: str, mean: float, deviation: float, points: list[float]) -> dict[str, float]:
    found = {f"mean_{name}_ms": mean, f"median_{name}_ms": points[0], f"std_{name}_ms": deviation}
    for p, value in zip(PERCENTILES, points[1:], strict=True):
        found[f"p{percentile_word(p)}_{name}_ms"] = value
    return found


def token_gaps_ns(outcome: Outcome) -> tuple[Ints, Ints]:
    """Times between a request's tokens, with how often each occurs, over the served requests."""
    ends, runs = outcome.ends_ns, _served_runs(outcome)
    if not len(runs):
        return runs[:0, 0], runs[:0, 0]
    # Inside a run: step s closes a gap for everyone who also got a token in step s - 1.
    first, count = runs[:, 1], runs[:, 2]
    weight = _covered(first + 1, first + count, len(ends))
    inside = np.flatnonzero(weight)
    gaps, counts = np.diff(ends, prepend=0)[inside], weight[inside]
    # Between two runs of one request: it waited, or was preempted.
    again = np.flatnonzero(runs[1:, 0] == runs[:-1, 0])
    between = ends[first[again + 1]] - ends[first[again] + count[again] - 1]
    return np.concatenate([gaps, between]), np.concatenate([counts, np.ones(len(between), np.int64)])


def _covered(first: Ints, after: Ints, steps: int) -> Ints:
    """How many of the ranges [first, after) hold each step."""
    change = np.bincount(first, minlength=steps + 1) - np.bincount(after, minlength=steps + 1)
    covered: Ints = np.cumsum(change)[:steps]
    return covered


def _served_runs(outcome: Outcome) -> Ints:
    runs = outcome.runs
    return runs[outcome.served[runs[:, 0]]]


def _stalls_s(outcome: Outcome) -> Floats:
    """The longest gap of each served request that has one."""
    ends, runs = outcome.ends_ns, _served_runs(outcome)
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
    runs = _served_runs(outcome)
    tokens = _covered(runs[:, 1], runs[:, 1] + runs[:, 2], outcome.num_steps)
    origin = int(outcome.sent_ns[served].min())
    # Steps are in order, so the seconds' borders are found by search, not by dividing every time.
    last = int(outcome.ended_ns[served].max())
    borders = np.searchsorted(outcome.ends_ns, np.arange(origin, last + 2_000_000_000, 1_000_000_000))
    done = np.concatenate([[0], np.cumsum(tokens)])[borders]
    return float(np.diff(done).max())


def _most_concurrent(outcome: Outcome) -> int:
    """Most requests at one time, over the half-open intervals [sent, last token)."""
    served = outcome.served
    times = np.concatenate([outcome.sent_ns[served], outcome.ended_ns[served]])
    change = np.repeat([1, -1], int(served.sum()))
    order = np.lexsort((change, times))  # an end sorts before a start at the same time
    return int(np.cumsum(change[order]).max())
