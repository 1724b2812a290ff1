"""Numbers as people write them: three significant digits, a unit that fits, lists with "and"."""

from __future__ import annotations

import math
from collections.abc import Sequence

METRIC_WORDS: dict[str, str] = {
    "duration": "duration",
    "output_throughput": "output throughput",
    "total_token_throughput": "total throughput",
    "request_throughput": "request throughput",
    "mean_ttft_ms": "mean TTFT",
    "median_ttft_ms": "median TTFT",
    "p99_ttft_ms": "p99 TTFT",
    "mean_tpot_ms": "mean TPOT",
    "median_tpot_ms": "median TPOT",
    "p99_tpot_ms": "p99 TPOT",
    "mean_itl_ms": "mean ITL",
    "median_itl_ms": "median ITL",
    "p99_itl_ms": "p99 ITL",
    "mean_e2el_ms": "mean end-to-end latency",
}


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}"


def percent(fraction: float) -> str:
    """0.0357 -> "3.6 %"; one digit below ten per cent, none above."""
    value = 100 * fraction
    return f"{value:.0f} %" if abs(value) >= 9.95 else f"{value:.1f} %"


def noise(fraction: float) -> str:
    """A relative noise: "±23 %", and "a factor of 3.9" where plus and minus make no sense any more."""
    if fraction >= 9:
        return "more than a factor of 10"
    return f"±{percent(fraction)}" if fraction < 1 else f"a factor of {times(1 + fraction)}"


def milliseconds(value: float) -> str:
    return f"{number(value / 1000)} s" if abs(value) >= 1000 else f"{number(value)} ms"


def quantity(metric: str, value: float) -> str:
    """The value of a metric with its unit."""
    if metric.endswith("_ms"):
        return milliseconds(value)
    if metric == "duration":
        return f"{number(value)} s"
    if metric in ("output_throughput", "total_token_throughput"):
        return f"{number(value)} tok/s"
    return f"{number(value)} requests/s" if metric == "request_throughput" else number(value)


def listed(items: Sequence[str]) -> str:
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} and {items[-1]}"


def times(value: float) -> str:
    """A factor: 8, 6.4."""
    return f"{value:.1f}".removesuffix(".0")


def names(items: Sequence[str], limit: int = 6) -> str:
    """Names in a sentence; a long list is cut, and says by how much."""
    if len(items) <= limit:
        return listed(items)
    return f"{', '.join(items[: limit - 1])} and {len(items) - limit + 1} others"


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
