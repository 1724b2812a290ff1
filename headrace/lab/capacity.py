"""The largest request rate that keeps a service level, with a confidence bound on either side.

One run near the limit says little: it may keep the level or not.  *Capacity* is the rate at which half of the runs do.
Bounds come from a sign test, which needs no model of latency: a rate at which n fresh runs of n keep the level is above
capacity with a probability of at most 2^-n.  Each further rate that has to be tried takes one run more, so that all the
trials together err as seldom as was asked (2^-n + 2^-(n+1) + ... = 2^-(n-1)).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Trial:
    """One run at `rate` requests a second; `met`: it kept the level."""

    rate: float
    met: bool


@dataclass(frozen=True, slots=True)
class Capacity:
    """`at_least` and `at_most` hold each with the confidence asked for; None: not found within the rates or runs
    allowed.  `trials` in the order of measuring."""

    at_least: float | None
    at_most: float | None
    trials: tuple[Trial, ...]

    def passed(self, rate: float) -> tuple[int, int]:
        """(runs that kept the level, runs) at a rate."""
        outcomes = [trial.met for trial in self.trials if trial.rate == rate]
        return sum(outcomes), len(outcomes)


def runs_to_confirm(confidence: float) -> int:
    """Runs of the first rate: half of the error that is allowed goes to it, the other half to all that follow."""
    return math.ceil(math.log2(1 / (1 - confidence))) + 1


@dataclass(slots=True)
class Search:
    """Finds a server's capacity.

    trial       measures one run at a rate and says whether it kept the level
    start       the first rate tried
    least, most rates are tried between these two
    step        rates that differ by less than this factor are not told apart
    confidence  of each bound
    max_runs    trials at most
    """

    trial: Callable[[float], bool]
    start: float
    least: float
    most: float
    step: float = 1.05
    confidence: float = 0.95
    max_runs: int = 60
    _trials: list[Trial] = field(default_factory=list)

    def run(self) -> Capacity:
        """Bracket, halve, confirm.  Stops early when `max_runs` are spent: then bounds may be missing."""
        at_least = at_most = None
        try:
            low, high = self._bracket()
            while low is not None and high is not None and high > low * self.step * (1 + 1e-9):
                middle = math.sqrt(low * high)
                if self._try(middle):
                    low = middle
                else:
                    high = middle
            if low is not None:
                at_least = self._confirm(low, 1 / self.step, met=True)
            if high is not None:
                at_most = self._confirm(high, self.step, met=False)
        except _SpentError:
            pass
        return Capacity(at_least, at_most, tuple(self._trials))

    def _bracket(self) -> tuple[float | None, float | None]:
        """A rate that kept the level, and a higher one that did not; None where the allowed rates end first."""
        rate = min(max(self.start, self.least), self.most)
        met = self._try(rate)
        while True:
            following = min(rate * 2, self.most) if met else max(rate / 2, self.least)
            if following == rate:
                return (rate, None) if met else (None, rate)
            if self._try(following) != met:
                return (rate, following) if met else (following, rate)
            rate = following

    def _confirm(self, rate: float, factor: float, *, met: bool) -> float | None:
        """The first rate, from this one on in growing steps, at which all fresh runs end as `met`."""
        runs, stride = runs_to_confirm(self.confidence), factor
        while self.least * (1 - 1e-9) <= rate <= self.most * (1 + 1e-9):
            if all(self._try(rate) is met for _ in range(runs)):
                return rate
            rate, runs, stride = rate * stride, runs + 1, stride * factor
        return None

    def _try(self, rate: float) -> bool:
        if len(self._trials) >= self.max_runs:
            raise _SpentError
        met = self.trial(rate)
        self._trials.append(Trial(rate, met))
        return met


class _SpentError(Exception):
    """All the runs that were allowed are measured."""
