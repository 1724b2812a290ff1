"""Contestants in turn, round after round, and ratios of what was measured in the same round.

The machine is shared: its speed changes by tens of percent within minutes.  Neighbours in time see nearly the same
machine, so ratios are taken within a round; their median and range are the result, and the rates are only told beside
it.  The order turns around from round to round, so that a slow drift does not favour whoever comes first.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

Measure = Callable[[], float]


def take_turns(contestants: Mapping[str, Measure], rounds: int, note: Callable[[str], None]) -> dict[str, list[float]]:
    """Rates by contestant, one a round, in the order of the rounds."""
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds):
        names = list(contestants)
        for name in names if turn % 2 == 0 else reversed(names):
            rate = contestants[name]()
            rates[name].append(rate)
            note(f"round {turn + 1}: {name:28} {rate:9.1f}")
    return rates


def ratios(rates: Mapping[str, Sequence[float]], ours: str, other: str) -> list[float]:
    """`ours` over `other`, of each round."""
    return [a / b for a, b in zip(rates[ours], rates[other], strict=True)]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median, then the smallest and the largest."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f}, n={len(values)})"
