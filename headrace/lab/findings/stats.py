"""When is a difference a difference?  Between-repeat spread where there are repeats, a stated allowance where not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from headrace.lab.findings.disturbance import taken
from headrace.lab.findings.table import sample
from headrace.lab.records.results import Cell

# One run a cell has no spread of its own.  Repeats of one setting on one machine commonly differ by a few per cent
# (restart, clock, output lengths under sampling); smaller differences between single runs are ties.
ONE_RUN_ALLOWANCE = 0.04
# A p99 over about 1,000 requests rests on the ten worst: its run-to-run scatter is several times that of a mean.
ONE_RUN_TAIL_ALLOWANCE = 0.25
# With repeats the interval decides, but a difference below this is of no use to anybody, however certain.
REPEATED_FLOOR = 0.01
CONFIDENCE = 0.95
# Noise beyond this hides what a setting commonly changes: then "no difference" is not known, and must not be said.
UNDECIDABLE = 0.15
UNDECIDABLE_TAIL = 0.40
# Logarithms of ratios beyond this come from damaged figures, and must not overflow.
_WIDEST = 20.0
# Points of the distribution over which the maximum modulus is averaged: more change the third digit no more.
_GRID = 4000


@dataclass(frozen=True, slots=True)
class Ratio:
    """b/a of one metric in two cells, with the interval inside which it cannot be told from other values.

    basis   "paired repeats" (what all cells of one repeat share is taken out), "repeats", or "single runs" (the
            interval is the stated allowance)
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

    @property
    def noise(self) -> float:
        """Half the interval's width, as a relative difference."""
        return self.high / self.value - 1


def is_tail(metric: str) -> bool:
    """p90, p99, p99.9, max: figures that rest on few requests."""
    return metric.startswith(("p9", "max_"))


def too_noisy(metric: str, noise: float) -> bool:
    """With this much noise, that a difference is not seen says nothing."""
    return noise > (UNDECIDABLE_TAIL if is_tail(metric) else UNDECIDABLE)


def one_run_allowance(metric: str, cells: Sequence[Cell]) -> float:
    """The stated allowance for single runs, but never less than what repeats of any of these cells lie apart,
    widened by what other processes took of the machine."""
    return _widened(_stated(metric, cells), cells)


def _stated(metric: str, cells: Sequence[Cell]) -> float:
    stated = ONE_RUN_TAIL_ALLOWANCE if is_tail(metric) else ONE_RUN_ALLOWANCE
    repeated = [values for cell in cells if len(values := sample(cell, metric)) > 1 and min(values) > 0]
    return max([stated, *(max(values) / min(values) - 1 for values in repeated)])


def allowance(metric: str, cells: Sequence[Cell]) -> float:
    """Relative difference between two of these cells below which they are ties.

    With at least two runs in every cell: Tukey's honestly significant difference from the pooled spread between
    repeats (the largest of all the pairs stays below it in 95 % of studies without any effect), but never below
    REPEATED_FLOOR.  Otherwise the stated allowance for single runs.  Either is widened where runs were disturbed.
    """
    error = _error(metric, cells)
    if error is None:
        return one_run_allowance(metric, cells)
    fewest = min(len(sample(cell, metric)) for cell in cells)
    half = min(_range(len(cells), error.freedom) * error.spread / math.sqrt(fewest), _WIDEST)
    return _widened(max(REPEATED_FLOOR, math.expm1(half)), cells)


def ratio(
    metric: str, a: Cell, b: Cell, comparisons: int = 1, among: Sequence[Cell] = (), metrics: int = 1
) -> Ratio | None:
    """b over a for one metric; None when either lacks it or is zero.  Works on logarithms, so a/b mirrors b/a.

    `comparisons` is how many such ratios one claim looks at: their intervals are simultaneous, over
    `metrics` metrics of as many (`critical`).
    `among` are cells of the same study, a and b included: the spread between repeats is pooled over all of them,
    since three repeats of two cells alone say little about it.
    """
    left, right = sample(a, metric), sample(b, metric)
    if not left or not right or min(*left, *right) <= 0:
        return None
    error = _error_of_pair(metric, a, b, among)
    if error is None:
        value = (sum(right) / len(right)) / (sum(left) / len(left))
        slack = 1 + _widened(_stated(metric, among or (a, b)), (a, b))
        return Ratio(value, value / slack, value * slack, "single runs")
    value = math.exp(_centre(right) - _centre(left))
    half = critical(error.freedom, comparisons, metrics) * error.spread * math.sqrt(1 / len(left) + 1 / len(right))
    slack = 1 + _widened(math.expm1(min(half, _WIDEST)), (a, b))
    return Ratio(value, value / slack, value * slack, "paired repeats" if error.paired else "repeats")


def repeats_for(
    metric: str,
    a: Cell,
    b: Cell,
    comparisons: int,
    among: Sequence[Cell],
    metrics: int,
    *,
    half_width: float,
    most: int,
) -> int | None:
    """Repeats of each cell after which the interval of b/a is +-`half_width` (of the logarithm), by the spread so far.

    None beyond `most`, and where there is no spread to go by.
    """
    error = _error_of_pair(metric, a, b, among)
    if error is None or half_width <= 0:
        return None
    have = min(len(sample(a, metric)), len(sample(b, metric)))
    # Degrees of freedom grow with the repeats as they are: one a repeat and cell, less what the cells have in common.
    per_repeat = error.freedom / max(1, have - 1)
    for repeats in range(2, most + 1):
        freedom = max(1, round(per_repeat * (repeats - 1)))
        if critical(freedom, comparisons, metrics) * error.spread * math.sqrt(2 / repeats) <= half_width:
            return repeats
    return None


@dataclass(frozen=True, slots=True)
class _Error:
    """Standard deviation of one run's logarithm around its cell, and its degrees of freedom."""

    spread: float
    freedom: int
    paired: bool


def _error_of_pair(metric: str, a: Cell, b: Cell, among: Sequence[Cell]) -> _Error | None:
    """The spread pooled over the study, unless these two cells are more restless than the others can be by chance."""
    repeated = [cell for cell in among if len(sample(cell, metric)) > 1]
    own = _error(metric, (a, b))
    if a not in repeated or b not in repeated or len(repeated) < 3:
        return own
    pooled = _error(metric, repeated)
    if own is None or pooled is None:
        return pooled or own
    return own if own.spread**2 > _f(own.freedom, pooled.freedom) * pooled.spread**2 else pooled


def _error(metric: str, cells: Sequence[Cell]) -> _Error | None:
    """Pooled over the cells; None when a cell has no two runs with the metric above zero.

    Where every cell has the same repeats they are blocks: a drift of the machine that all cells of one repeat share
    is no noise between cells (two cells: the paired t-test).
    """
    samples = [sample(cell, metric) for cell in cells]
    if not samples or min(map(len, samples)) < 2 or min(map(min, samples)) <= 0:
        return None
    rows = _blocks(metric, cells) or [list(values) for values in samples]
    paired = _blocks(metric, cells) is not None
    logs = [[math.log(value) for value in row] for row in rows]
    centres = [sum(row) / len(row) for row in logs]
    if not paired:
        freedom = sum(len(row) - 1 for row in logs)
        squares = sum((y - centre) ** 2 for row, centre in zip(logs, centres, strict=True) for y in row)
        return _Error(math.sqrt(squares / freedom), freedom, paired=False)
    grand = sum(centres) / len(centres)
    shifts = [sum(column) / len(column) - grand for column in zip(*logs, strict=True)]
    squares = sum(
        (y - centre - shift) ** 2
        for row, centre in zip(logs, centres, strict=True)
        for y, shift in zip(row, shifts, strict=True)
    )
    freedom = (len(logs) - 1) * (len(shifts) - 1)
    return _Error(math.sqrt(squares / freedom), freedom, paired=True)


def _blocks(metric: str, cells: Sequence[Cell]) -> list[list[float]] | None:
    """One row a cell, one column a repeat; None unless every cell has each repeat once."""
    tables: list[dict[int, float]] = []
    for cell in cells:
        values, repeats = sample(cell, metric), [run.settings.get("repeat") for run in cell.runs]
        table = {
            repeat: value
            for repeat, value in zip(repeats, values, strict=False)
            if isinstance(repeat, int) and len(values) == len(repeats)
        }
        if len(table) != len(values):
            return None
        tables.append(table)
    if len(tables) < 2 or any(table.keys() != tables[0].keys() for table in tables):
        return None
    return [[table[repeat] for repeat in tables[0]] for table in tables]


def _widened(noise: float, cells: Sequence[Cell]) -> float:
    """A run that had only the share 1 - f of the machine may have been slower by 1/(1 - f) for that alone; repeats
    do not show it where all of them were disturbed."""
    return (1 + noise) / (1 - taken(cells)) - 1


def _centre(values: Sequence[float]) -> float:
    return sum(map(math.log, values)) / len(values)


@cache
def critical(freedom: int, comparisons: int, metrics: int = 1) -> float:
    """Factor on the standard errors of so many comparisons that share one estimate of the spread: all the intervals
    hold at once in 95 % of studies, in each of `metrics` metrics (each has its spread: Bonferroni over these).

    One comparison: Student's t.  Several: the studentized maximum modulus, from
    P(max |T_i| <= c) >= E[(2 Phi(c s) - 1)^k], s^2 a chi-square over its degrees of freedom (Sidak 1967).
    """
    import numpy as np
    from scipy.optimize import brentq
    from scipy.stats import chi2, norm, t  # slow imports, and most studies are read without them

    error = (1 - CONFIDENCE) / metrics
    alone = float(t.ppf(1 - error / 2, freedom))
    if comparisons == 1:
        return alone
    spreads = np.sqrt(chi2.ppf((np.arange(_GRID) + 0.5) / _GRID, freedom) / freedom)

    def missing(factor: float) -> float:
        return float(np.mean((2 * norm.cdf(factor * spreads) - 1) ** comparisons)) - (1 - error)

    bonferroni = float(t.ppf(1 - error / (2 * comparisons), freedom))
    return bonferroni if missing(bonferroni) <= 0 else float(brentq(missing, alone, bonferroni))


@cache
def _f(over: int, under: int) -> float:
    from scipy.stats import f

    return float(f.ppf(CONFIDENCE, over, under))


@cache
def _range(groups: int, freedom: int) -> float:
    from scipy.stats import studentized_range

    return float(studentized_range.ppf(CONFIDENCE, max(groups, 2), freedom))
