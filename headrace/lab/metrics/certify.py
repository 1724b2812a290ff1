"""What a sample can prove of a percentile: a bound that holds with 99 % confidence, or nothing below a smallest size.

LoadGen's early stopping (mlcommons/inference, `early_stopping.cc`): of n samples let t be the largest number with
P(Binomial(n, 1 - p) <= t) < 1 - confidence; then the t-th highest sample is at or above the p-th percentile with that
confidence (at the floor, t = 1, it is the maximum).  It assumes independent samples, which latencies of one run are not
quite, so it gates claims and decides nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.99


@dataclass(frozen=True, slots=True)
class Interval:
    """A two-sided interval of a figure, and how many samples it rests on."""

    low: float
    high: float
    samples: int


def highest_samples(samples: int, percentile: float, confidence: float = CONFIDENCE) -> int:
    """t of the rule above; 0 where so few samples prove nothing."""
    share = 1 - percentile / 100
    t = int(stats.binom.ppf(1 - confidence, samples, share))
    while t >= 1 and stats.binom.cdf(t, samples, share) >= 1 - confidence:
        t -= 1
    return max(t, 0)


def smallest_sample(percentile: float, confidence: float = CONFIDENCE) -> int:
    """How many samples certify a percentile at all: the first n with P(Binomial(n, 1 - p) <= 1) < 1 - confidence."""
    share = 1 - percentile / 100
    low, high = 1, 2
    while stats.binom.cdf(1, high, share) >= 1 - confidence:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if stats.binom.cdf(1, middle, share) < 1 - confidence:
            high = middle
        else:
            low = middle
    return high


def certified(values: Sequence[float], percentile: float, confidence: float = CONFIDENCE) -> float | None:
    """The bound that the percentile does not exceed with `confidence`; None with fewer than `smallest_sample`."""
    t = highest_samples(len(values), percentile, confidence)
    return float(np.sort(np.asarray(values))[len(values) - t]) if t else None


def percentile_interval(values: Sequence[float], percentile: float, confidence: float = 0.95) -> Interval | None:
    """Two order statistics that enclose the percentile with at least `confidence`; None where the sample is too small
    for both ends.  Needs no shape of the distribution."""
    n, share = len(values), percentile / 100
    if not n:
        return None
    tail = (1 - confidence) / 2
    low = int(stats.binom.ppf(tail, n, share)) - 1
    high = int(stats.binom.ppf(1 - tail, n, share))
    if low < 0 or high >= n:
        return None
    ordered = np.sort(np.asarray(values))
    return Interval(float(ordered[low]), float(ordered[high]), n)


def effective_size(values: Sequence[float]) -> float:
    """How many independent samples a series is worth: n (1 - r) / (1 + r), r its correlation with the one before."""
    x = np.asarray(values, dtype=np.float64)
    n = len(x)
    if n < 3 or x.std() == 0:
        return float(n)
    centred = x - x.mean()
    r = float((centred[1:] * centred[:-1]).sum() / (centred**2).sum())
    return n * (1 - r) / (1 + r) if r > 0 else float(n)


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval | None:
    """Student's interval of the mean over the effective size, in order of time; None for fewer than three values."""
    n = len(values)
    if n < 3:
        return None
    worth = max(effective_size(values), 2.0)
    x = np.asarray(values, dtype=np.float64)
    half = float(stats.t.ppf((1 + confidence) / 2, worth - 1) * x.std(ddof=1) / math.sqrt(worth))
    return Interval(float(x.mean()) - half, float(x.mean()) + half, n)
