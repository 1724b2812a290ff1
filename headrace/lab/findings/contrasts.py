"""Comparisons of two cells in one metric, each with an end: better, worse, no difference larger than that, or so many
more repeats.

All the comparisons that one claim makes share one error rate of 5 %: their intervals are simultaneous, by the
studentized maximum modulus within a metric (Sidak 1967: it holds whatever the correlation between them), by
Bonferroni between metrics.  It is closer than Bonferroni alone, and its decisions are its intervals; Holm's steps
decide a little more often, and have no intervals that agree with them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from headrace.lab.findings.best import MORE_IS_BETTER
from headrace.lab.findings.stats import REPEATED_FLOOR, Ratio, ratio, repeats_for
from headrace.lab.findings.words import percent, plural
from headrace.lab.records.results import Cell

# A difference that matters, where nobody has said another: comparisons go on until they could see it.
RESOLUTION = 0.05
# More repeats than anybody makes: then it is said that repeats alone will not do.
_TOO_MANY = 100


class End(StrEnum):
    BETTER = "better"
    WORSE = "worse"
    SAME = "no difference"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Contrast:
    """Cell `b` against cell `a` in one metric.

    change, low, high  relative: 0.1 is 10 % more in b; the interval is simultaneous with the others of its family
    basis              "paired repeats", "repeats" or "single runs"
    more_repeats       for UNDECIDED: of each cell, until a difference of `resolution` would show; None: too many, or
                       the noise is not known yet
    """

    metric: str
    a: str
    b: str
    change: float
    low: float
    high: float
    basis: str
    end: End
    resolution: float
    more_repeats: int | None = None

    @property
    def largest(self) -> float:
        """The largest difference that the interval leaves possible, in either direction."""
        return max(abs(self.low), abs(self.high))

    def words(self) -> str:
        """ "better by 12 % (8.0 % to 16 %)", "no difference larger than 3.1 %", "... about 4 more repeats needed"."""
        if self.end in (End.BETTER, End.WORSE):
            size = sorted((abs(self.low), abs(self.high)))
            return f"{self.end} by {percent(abs(self.change))} ({percent(size[0])} to {percent(size[1])})"
        if self.end is End.SAME:
            return f"no difference larger than {percent(self.largest)}"
        between = f"between {percent(self.low)} and {percent(self.high)}".replace("-", "\u2212")
        if self.basis == "single runs":
            return f"{between} by one run each: repeats needed"
        if self.more_repeats is None:
            return f"{between}: too noisy for repeats to tell {percent(self.resolution)}"
        return f"{between}: about {plural(self.more_repeats, 'more repeat')} needed to tell {percent(self.resolution)}"


def contrast(
    metric: str,
    a: Cell,
    b: Cell,
    *,
    comparisons: int = 1,
    among: Sequence[Cell] = (),
    metrics: int = 1,
    resolution: float = RESOLUTION,
) -> Contrast | None:
    """Compare; None when either cell lacks the metric or has a zero.

    comparisons  of this metric in the same family, this one included
    metrics      that the family looks at
    among        cells of the same study, whose spread between repeats is pooled
    """
    found = ratio(metric, a, b, comparisons, among, metrics)
    if found is None:
        return None
    low, high = found.low - 1, found.high - 1
    end = _end(metric, found, resolution)
    more = None
    if end is End.UNDECIDED and found.basis != "single runs":
        wanted = repeats_for(
            metric, a, b, comparisons, among, metrics, half_width=math.log1p(resolution), most=_TOO_MANY
        )
        more = None if wanted is None else max(1, wanted - min(len(a.runs), len(b.runs)))
    return Contrast(metric, a.name, b.name, found.value - 1, low, high, found.basis, end, resolution, more)


def _end(metric: str, found: Ratio, resolution: float) -> End:
    if found.distinct:
        return End.BETTER if (found.value > 1) is (metric in MORE_IS_BETTER) else End.WORSE
    excluded = not found.low <= 1 <= found.high
    if excluded and abs(found.value - 1) <= REPEATED_FLOOR:
        return End.SAME  # certain, and too small for anybody
    return End.SAME if max(1 - found.low, found.high - 1) <= resolution else End.UNDECIDED
