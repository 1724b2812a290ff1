"""`--fail-if 'p99_ttft_ms > 5%'`: may B replace A?  A condition fails when it holds beyond noise, and only then.

With a per cent sign a condition is about B against A; without, about B's own value.  Each ends in failed (surely beyond
the bound), passed (surely within it) or undecided (more repeats would tell); all of them share one error rate of 5 %.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from headrace.errors import ConfigError
from headrace.lab.findings.stats import allowance, critical, ratio, repeats_for
from headrace.lab.findings.table import mean, sample
from headrace.lab.findings.words import percent, plural, quantity
from headrace.lab.records.results import Cell

_CONDITION = re.compile(
    r"\s*(?P<metric>\w[\w.]*)\s*(?P<sign>>=|<=|>|<)\s*(?P<bound>[-+]?\d+(?:\.\d*)?)\s*(?P<rel>%)?\s*"
)
_SIGNS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
_MOST_REPEATS = 100


class Outcome(StrEnum):
    FAILED = "failed"
    PASSED = "passed"
    UNDECIDED = "undecided"
    ABSENT = "not measured"


@dataclass(frozen=True, slots=True)
class Condition:
    """`metric` `sign` `bound`: what must not be.  `bound` is a fraction where it is `relative`, else in the metric's
    unit."""

    metric: str
    sign: str
    bound: float
    relative: bool

    def __str__(self) -> str:
        return f"{self.metric} {self.sign} {f'{100 * self.bound:g}%' if self.relative else f'{self.bound:g}'}"

    def holds(self, value: float) -> bool:
        return bool(_SIGNS[self.sign](value, self.bound))


@dataclass(frozen=True, slots=True)
class Judged:
    """One condition on one pair of cells: its outcome, the value with its interval, and a sentence."""

    condition: Condition
    cell: str
    outcome: Outcome
    value: float
    low: float
    high: float
    words: str


def parse_condition(text: str) -> Condition:
    """Raises ConfigError with the form that is accepted."""
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"--fail-if takes METRIC > NUMBER, with % for a difference ('p99_ttft_ms > 5%', 'output_throughput < -5%', "
            f"'p99_ttft_ms > 800'), not {text!r}"
        )
    bound = float(match["bound"])
    relative = match["rel"] is not None
    if relative and bound <= -100:
        raise ConfigError(f"--fail-if {text!r}: nothing falls by 100 % or more")
    return Condition(match["metric"], match["sign"], bound / 100 if relative else bound, relative)


def judge(conditions: Sequence[Condition], pairs: Sequence[tuple[Cell, Cell]], *, paired: bool) -> list[Judged]:
    """Each condition on each pair (A's cell, B's cell).

    paired  the repeats of A and B were interleaved (cells of one campaign): what a repeat's cells share is no noise.
            Repeats of two campaigns merely have the same numbers
    """
    size = len(pairs)
    return [
        _judge(one, a, b if paired else renumbered(b), size, len(conditions)) for one in conditions for a, b in pairs
    ]


def _judge(condition: Condition, a: Cell, b: Cell, pairs: int, metrics: int) -> Judged:
    metric = condition.metric
    estimate = (_difference if condition.relative else _own)(metric, a, b, pairs, metrics)
    if estimate is None:
        words = f"{metric} is not in the runs of {a.name} and {b.name}" if condition.relative else f"no {metric}"
        return Judged(condition, b.name, Outcome.ABSENT, math.nan, math.nan, math.nan, words)
    value, low, high, basis = estimate
    ends = {condition.holds(low), condition.holds(high)}
    outcome = Outcome.UNDECIDED if len(ends) == 2 else Outcome.FAILED if ends == {True} else Outcome.PASSED
    said = _said(condition, value, low, high) + (f", by {basis}" if basis == "single runs" else "")
    if outcome is Outcome.UNDECIDED:
        said += f": {_needed(condition, a, b, value, pairs, metrics)}"
    return Judged(condition, b.name, outcome, value, low, high, said)


def _difference(metric: str, a: Cell, b: Cell, pairs: int, metrics: int) -> tuple[float, float, float, str] | None:
    found = ratio(metric, a, b, pairs, metrics=metrics)
    return None if found is None else (found.value - 1, found.low - 1, found.high - 1, found.basis)


def _own(metric: str, a: Cell, b: Cell, pairs: int, metrics: int) -> tuple[float, float, float, str] | None:
    """B's mean with its interval, on the logarithm; by one run the stated allowance."""
    values, value = sample(b, metric), mean(b, metric)
    if not values or value is None or min(values) <= 0:
        return (value, value, value, "repeats") if value is not None else None  # a count of zero has no logarithm
    if len(values) == 1:
        slack = 1 + allowance(metric, (b,))
        return value, value / slack, value * slack, "single runs"
    logs = [math.log(one) for one in values]
    centre = sum(logs) / len(logs)
    spread = math.sqrt(sum((one - centre) ** 2 for one in logs) / (len(logs) - 1))
    half = critical(len(logs) - 1, pairs, metrics) * spread / math.sqrt(len(logs))
    return math.exp(centre), math.exp(centre - half), math.exp(min(centre + half, 700.0)), "repeats"


def _said(condition: Condition, value: float, low: float, high: float) -> str:
    if not condition.relative:
        ends = (quantity(condition.metric, end) for end in (value, low, high))
        return "{} ({} to {})".format(*ends)
    ends = (f"{'+' if end >= 0 else ''}{percent(end)}".replace("-", "\u2212") for end in (value, low, high))
    return "{} ({} to {})".format(*ends)


def _needed(condition: Condition, a: Cell, b: Cell, value: float, pairs: int, metrics: int) -> str:
    """How many more repeats would decide, if the difference is what it seems; a value on the bound decides never."""
    have = min(len(a.runs), len(b.runs)) if condition.relative else len(b.runs)
    if have < 2:
        return "repeats needed"
    gap = abs(math.log1p(value) - math.log1p(condition.bound)) if condition.relative else math.inf
    wanted = repeats_for(condition.metric, a, b, pairs, (), metrics, half_width=gap, most=_MOST_REPEATS)
    if not condition.relative or wanted is None:
        return "more repeats needed"
    return f"about {plural(max(1, wanted - have), 'more repeat')} needed"


def renumbered(cell: Cell) -> Cell:
    """The cell of another campaign: its repeats have the same numbers, and were not measured beside the other's."""
    runs = tuple(
        replace(run, settings={**run.settings, "repeat": f"B{run.settings.get('repeat', number)}"})
        for number, run in enumerate(cell.runs)
    )
    return replace(cell, runs=runs)
