"""When is a difference a difference?  Between-repeat spread where there are repeats, a stated allowance where not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from headrace.lab.findings.table import FOREIGN_CPU, sample
from headrace.lab.records.results import Cell

# One run a cell has no spread of its own.  Repeats of one setting on one machine commonly differ by a few per cent
# (restart, clock, output lengths under sampling); smaller differences between single runs are ties.
ONE_RUN_ALLOWANCE = 0.04
# A p99 over about 1,000 requests rests on the ten worst: its run-to-run scatter is several times that of a mean.
ONE_RUN_TAIL_ALLOWANCE = 0.25
# With repeats the interval decides, but a difference below this is of no use to anybody, however certain.
REPEATED_FLOOR = 0.01
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Ratio:
    """b/a of one metric in two cells, with the interval inside which it cannot be told from other values.

    basis   "paired repeats", "repeats" (Welch) or "single runs" (the interval is the stated allowance)
    """

    value: float
    low: float
    high: float
    basis: str

    @property
    def distinct(self) -> bool:
        """The two cells differ by more than noise."""
        floor = 0.0 if self.basis == "single runs" else REPEATED_FLOOR
        return not (self.low <= 1 <= self.high) and abs(self.value - 1) > floor


def is_tail(metric: str) -> bool:
    """p90, p99, p99.9, max: figures that rest on few requests."""
    return metric.startswith(("p9", "max_"))


def one_run_allowance(metric: str, cells: Sequence[Cell]) -> float:
    """The stated allowance for single runs, widened by what neighbours took of the processor while they ran.

    A run that had only the share 1 - f of the machine may have been slower by 1/(1 - f) for that alone.
    """
    base = ONE_RUN_TAIL_ALLOWANCE if is_tail(metric) else ONE_RUN_ALLOWANCE
    shares = [run.settings.get(FOREIGN_CPU) for cell in cells for run in cell.runs]
    taken = max((share for share in shares if isinstance(share, float) and 0 <= share < 1), default=0.0)
    return (1 + base) / (1 - taken) - 1


def allowance(metric: str, cells: Sequence[Cell]) -> float:
    """Relative difference between two of these cells below which they are ties.

    With at least two runs in every cell: Tukey's honestly significant difference from the pooled spread between
    repeats (the largest of all the pairs stays below it in 95 % of studies without any effect), but never below
    REPEATED_FLOOR.  Otherwise the stated allowance for single runs.
    """
    samples = [sample(cell, metric) for cell in cells]
    if not samples or min(map(len, samples)) < 2:
        return one_run_allowance(metric, cells)
    centres = [sum(values) / len(values) for values in samples]
    squares = sum(
        (value / centre - 1) ** 2
        for values, centre in zip(samples, centres, strict=True)
        if centre > 0
        for value in values
    )
    freedom = sum(len(values) - 1 for values in samples)
    spread = math.sqrt(squares / freedom)
    return max(REPEATED_FLOOR, _range(len(cells), freedom) * spread / math.sqrt(min(map(len, samples))))


def ratio(metric: str, a: Cell, b: Cell, comparisons: int = 1) -> Ratio | None:
    """b over a for one metric; None when either lacks it or is zero.  Works on logarithms, so a/b mirrors b/a.

    `comparisons` is how many such ratios one claim looks at: the interval of each widens with it (Bonferroni).
    """
    left, right = sample(a, metric), sample(b, metric)
    if not left or not right or min(*left, *right) <= 0:
        return None
    if len(left) < 2 or len(right) < 2:
        value = (sum(right) / len(right)) / (sum(left) / len(left))
        slack = 1 + one_run_allowance(metric, (a, b))
        return Ratio(value, value / slack, value * slack, "single runs")
    pairs = _paired(metric, a, b)
    if len(pairs) >= 2:
        logs = [math.log(y / x) for x, y in pairs]
        centre, variance = _moments(logs)
        half = _t(len(logs) - 1, comparisons) * math.sqrt(variance / len(logs))
        return Ratio(math.exp(centre), math.exp(centre - half), math.exp(centre + half), "paired repeats")
    (m1, v1), (m2, v2) = _moments([math.log(x) for x in left]), _moments([math.log(y) for y in right])
    e1, e2 = v1 / len(left), v2 / len(right)
    error = e1 + e2
    # Welch-Satterthwaite; without any spread the interval is a point and its degrees do not matter
    freedom = error**2 / (e1**2 / (len(left) - 1) + e2**2 / (len(right) - 1)) if error > 0 else 1.0
    half = _t(freedom, comparisons) * math.sqrt(error)
    return Ratio(math.exp(m2 - m1), math.exp(m2 - m1 - half), math.exp(m2 - m1 + half), "repeats")


def _paired(metric: str, a: Cell, b: Cell) -> list[tuple[float, float]]:
    def by_repeat(cell: Cell) -> dict[int, float]:
        return {
            run.settings["repeat"]: run.metrics[metric]
            for run in cell.runs
            if isinstance(run.settings.get("repeat"), int) and metric in run.metrics
        }

    left, right = by_repeat(a), by_repeat(b)
    return [(left[key], right[key]) for key in left if key in right]


def _moments(values: Sequence[float]) -> tuple[float, float]:
    centre = sum(values) / len(values)
    return centre, sum((value - centre) ** 2 for value in values) / (len(values) - 1)


def _t(freedom: float, comparisons: int) -> float:
    from scipy.stats import t  # a slow import, and most studies are read without it

    return float(t.ppf(1 - (1 - CONFIDENCE) / (2 * comparisons), freedom))


def _range(groups: int, freedom: int) -> float:
    from scipy.stats import studentized_range

    return float(studentized_range.ppf(CONFIDENCE, max(groups, 2), freedom))
