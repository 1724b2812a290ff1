"""When each request is due: a schedule made from a seed before the run, saved with it, and audited.

The schedule is a true Poisson (or gamma) process: gaps are drawn and added up, and nothing is stretched afterwards.
vLLM's client rescales the sum so that the last request lands exactly on N/rate, which removes the variance of the
number of arrivals; `arrival_rescale` does the same for those who repeat a run of that client.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.lab.workload.spec import WorkloadSpec, parse_steps

NS = 1_000_000_000


def arrival_schedule(spec: WorkloadSpec, count: int | None = None) -> tuple[int, ...]:
    """Nanoseconds from the start of the run at which request i is due, in order; all 0 at an infinite rate.

    On a ramp the rate of request i lies between start s and end e: s + (e - s) i / (n - 1), or s (e / s)^(i / (n - 1)).

    The first request waits its own gap, as in vLLM's client.  `count` overrides `num_prompts`: the number of sessions.
    """
    n, rate = count or spec.num_prompts, spec.request_rate
    if spec.rate_steps is not None:
        return _stepped(spec, n)
    rates = np.full(n, rate) if spec.ramp_up_strategy is None else _ramp(spec, n)
    if np.isinf(rates).all():
        return (0,) * n
    if math.isinf(spec.burstiness):
        gaps = 1 / rates
    else:
        # Its own stream: drawing another dataset must not move the arrivals.
        rng = np.random.default_rng([spec.seed, 0xA221])
        gaps = rng.gamma(shape=spec.burstiness, scale=1 / (rates * spec.burstiness), size=n)
    due_s = np.cumsum(gaps)
    if spec.arrival_rescale and due_s[-1] > 0:
        due_s *= (n / rate) / due_s[-1]
    return tuple(int(t) for t in np.rint(due_s * NS))


def _stepped(spec: WorkloadSpec, n: int) -> tuple[int, ...]:
    """The process at rate 1, on a time that runs as fast as the rate of the step: exact at every change of rate."""
    gaps = np.ones(n)
    if not math.isinf(spec.burstiness):
        rng = np.random.default_rng([spec.seed, 0xA221])
        gaps = rng.gamma(shape=spec.burstiness, scale=1 / spec.burstiness, size=n)
    steps = parse_steps(spec.rate_steps or "")
    ends_s = np.cumsum([0.0, *(length for _, length in steps)])
    expected = np.cumsum([0.0, *(rate * length for rate, length in steps)])
    arrivals = np.cumsum(gaps)
    due_s = np.interp(arrivals, expected, ends_s)
    after = arrivals > expected[-1]
    due_s[after] = ends_s[-1] + (arrivals[after] - expected[-1]) / steps[-1][0]
    return tuple(int(t) for t in np.rint(due_s * NS))


def _ramp(spec: WorkloadSpec, n: int) -> NDArray[np.float64]:
    """Requests per second at each request: shape [num_prompts]."""
    start, end = spec.ramp_up_start_rps, spec.ramp_up_end_rps
    assert start is not None and end is not None
    way = np.arange(n) / max(n - 1, 1)
    return start + (end - start) * way if spec.ramp_up_strategy == "linear" else start * (end / start) ** way


@dataclass(frozen=True, slots=True)
class ArrivalAudit:
    """What a list of send times really is.

    rate_rps              arrivals per second from the start to the last one; None when all come at once
    gap_cv                coefficient of variation of the gaps: 1 for Poisson, 0 for constant, above 1 for bursty
    index_of_dispersion   variance / mean of the counts in windows of about ten arrivals: 1 for Poisson; None with
                          fewer than ten windows
    """

    rate_rps: float | None
    gap_cv: float | None
    index_of_dispersion: float | None


def audit_arrivals(times_ns: Sequence[int], *, start_ns: int = 0) -> ArrivalAudit:
    """Audit planned or real send times against the process they should be."""
    times = np.sort(np.asarray(times_ns, dtype=np.float64)) - start_ns
    if len(times) < 2 or times[-1] <= 0:
        return ArrivalAudit(None, None, None)
    gaps = np.diff(times, prepend=0.0)
    dispersion = None
    windows = len(times) // 10
    if windows >= 10:
        counts, _ = np.histogram(times, bins=windows, range=(0.0, float(times[-1])))
        dispersion = float(counts.var() / counts.mean())
    return ArrivalAudit(
        rate_rps=float(len(times) / times[-1] * NS),
        gap_cv=float(gaps.std() / gaps.mean()) if gaps.mean() > 0 else None,
        index_of_dispersion=dispersion,
    )
