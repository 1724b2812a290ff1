"""The search itself: which cell to measure next, when to stop, and what may be said at the end.

Simulate all; measure a cell that calibrates; then always the one that could gain most over the best so far; refit; stop
when no unmeasured cell can win by more than the tolerance.  It knows no servers: `measure` and `simulate` are given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from headrace.errors import ConfigError
from headrace.lab.tuner.surrogate import NOISE, Belief, Expected, believe, coordinates

Floats = NDArray[np.float64]
# The search ends when the chance that any unmeasured cell is more than the tolerance better falls below this.
CHANCE = 0.08
# Below this chance to keep the bounds a cell is not tried while none is known that keeps them.
_UNLIKELY = 0.02


class Simulator(Protocol):
    """What to expect of all cells, with the runs so far to learn from: cell -> what `measure` gave."""

    def __call__(self, runs: Mapping[int, Sequence[Any]]) -> Expected: ...


@dataclass(frozen=True, slots=True)
class Step:
    """One measured run: which cell, what it scored, and why it was chosen."""

    cell: int
    score: float
    why: str


@dataclass(frozen=True, slots=True)
class Found:
    """What the search came to.

    best          the chosen cell; None when none keeps the bounds
    score         its measured score
    sure          the chance that no cell is more than the tolerance better
    regret        the expected loss against the best cell, as a share
    ties          cells that may be as good: within the tolerance, or not told apart
    steps         every run, in order
    done          True: nothing left could win; False: the allowance was spent first
    """

    best: int | None
    score: float
    sure: float
    regret: float
    ties: tuple[int, ...]
    steps: tuple[Step, ...]
    done: bool
    belief: Belief
    simulated: Floats = field(default_factory=lambda: np.zeros(0))


def search(
    settings: Sequence[Mapping[str, Any]],
    measure: Callable[[int], Any],
    judge: Callable[[Any], tuple[float, float]],
    simulate: Simulator,
    *,
    most: int,
    tolerance: float = 0.02,
    noise: float = NOISE,
    told: Callable[[str], None] = lambda line: None,
) -> Found:
    """Search the cells with at most `most` measured runs.

    settings   of each cell, for what is near to what
    measure    runs a cell and returns what was seen; `judge` makes a score of it (0: it failed) and its excess over the
               bounds (above 0: one is broken)
    simulate   what to expect of all cells; called again after every run
    """
    if not settings:
        raise ConfigError("there is no legal cell to tune over")
    if most < 1:
        raise ConfigError("tuning needs at least one measured run")
    where = coordinates(settings)
    runs: dict[int, list[Any]] = {}
    values: dict[int, list[float]] = {}
    beyond: dict[int, list[float]] = {}
    steps: list[Step] = []
    chosen: int | None = _first(where)
    why = "in the middle: a first look at what a step costs"
    while True:
        assert chosen is not None
        seen = measure(chosen)
        runs.setdefault(chosen, []).append(seen)
        value, excess = judge(seen)
        values.setdefault(chosen, []).append(value)
        beyond.setdefault(chosen, []).append(excess)
        steps.append(Step(chosen, value if excess <= 0 else 0.0, why))
        expected = simulate(runs)
        belief = believe(expected, where, values, {cell: float(np.mean(each)) for cell, each in beyond.items()}, noise)
        scores = {
            cell: [value if over <= 0 else 0.0 for value, over in zip(several, beyond[cell], strict=True)]
            for cell, several in values.items()
        }
        best = _best(scores, belief)
        told(f"{len(steps)} measured, best {0.0 if best is None else max(scores[best]):.4g}")
        chosen, why = _next(belief, scores, where, best, tolerance)
        if chosen is None or len(steps) >= most:
            return _found(belief, scores, best, tolerance, steps, chosen is None, expected.scores)


def _first(where: Floats) -> int:
    """The cell nearest to the middle of the grid."""
    return int(np.argmin(((where - where.mean(axis=0)) ** 2).sum(axis=1))) if where.size else 0


def _best(scores: Mapping[int, Sequence[float]], belief: Belief) -> int | None:
    """By what is believed of the measured cells: the largest of several noisy scores is mostly luck."""
    good = [cell for cell, values in scores.items() if min(values) > 0]
    return max(good, key=lambda cell: float(belief.mean[cell])) if good else None


def _next(
    belief: Belief, scores: Mapping[int, Sequence[float]], where: Floats, best: int | None, tolerance: float
) -> tuple[int | None, str]:
    """The next cell and the reason; None when no unmeasured cell can win."""
    open_cells = [cell for cell in range(len(belief.mean)) if cell not in scores]
    hopeful = [cell for cell in open_cells if np.isfinite(belief.mean[cell]) and belief.keeps[cell] > 0]
    likely = [cell for cell in hopeful if belief.keeps[cell] > _UNLIKELY]
    if best is None:
        if likely:
            top = max(likely, key=lambda cell: belief.mean[cell] + math.log(belief.keeps[cell]))
            return top, "the best that the simulation expects within bounds"
        if open_cells and len(scores) < 3:
            far = _farthest(where, list(scores), open_cells)
            return far, "nothing is expected within bounds: the cell farthest from those measured"
        return None, ""
    if not hopeful:
        return None, ""
    if len(scores) == 1:
        # One run cannot tell a step's constant from its slope: the second is where the simulation expects most.
        top = max(hopeful, key=lambda cell: belief.mean[cell] + math.log(belief.keeps[cell]))
        return top, "the best that the simulation expects"
    target = belief.mean[best] + math.log1p(tolerance)
    chances = {cell: _chance(belief, cell, target) for cell in hopeful}
    if 1 - math.prod(1 - chance for chance in chances.values()) < CHANCE:
        return None, ""
    gains = {cell: _gain(belief, cell, belief.mean[best]) for cell in hopeful}
    cell = max(gains, key=lambda each: gains[each])
    return cell, f"may gain {100 * math.expm1(gains[cell]):.1f} % (chance of winning {100 * chances[cell]:.0f} %)"


def _chance(belief: Belief, cell: int, target: float) -> float:
    spread = max(float(belief.deviation[cell]), 1e-9)
    return float(belief.keeps[cell]) * float(stats.norm.sf((target - float(belief.mean[cell])) / spread))


def _gain(belief: Belief, cell: int, best: float) -> float:
    """Expected improvement of the logarithm."""
    spread = max(float(belief.deviation[cell]), 1e-9)
    z = (float(belief.mean[cell]) - best) / spread
    return float(belief.keeps[cell]) * float(spread * (z * stats.norm.cdf(z) + stats.norm.pdf(z)))


def _farthest(where: Floats, done: Sequence[int], open_cells: Sequence[int]) -> int:
    distance = ((where[open_cells][:, None, :] - where[list(done)][None, :, :]) ** 2).sum(axis=-1).min(axis=1)
    return int(open_cells[int(np.argmax(distance))])


def _found(
    belief: Belief,
    scores: Mapping[int, Sequence[float]],
    best: int | None,
    tolerance: float,
    steps: Sequence[Step],
    done: bool,
    simulated: Floats,
) -> Found:
    if best is None:
        return Found(None, 0.0, 0.0, 1.0, (), tuple(steps), done, belief, simulated)
    rng = np.random.default_rng(0)
    finite = np.isfinite(belief.mean) & (belief.keeps > 0)
    draws = rng.normal(belief.mean[finite], np.maximum(belief.deviation[finite], 1e-12), (4000, int(finite.sum())))
    draws[rng.random(draws.shape) >= belief.keeps[finite]] = -np.inf
    mine = draws[:, int(np.flatnonzero(np.flatnonzero(finite) == best)[0])]
    lost = np.maximum(draws.max(axis=1) - mine, 0.0)
    sure = float((lost <= math.log1p(tolerance)).mean())
    near = belief.mean[best] - math.log1p(tolerance)
    ties = [
        cell
        for cell in np.flatnonzero(finite)
        if cell != best and belief.keeps[cell] > 0.5 and belief.mean[cell] + 1.64 * belief.deviation[cell] >= near
    ]
    ties.sort(key=lambda cell: -belief.mean[cell])
    score = float(np.mean(scores[best]))
    return Found(
        best, score, sure, float(-np.expm1(-lost.mean())), tuple(map(int, ties)), tuple(steps), done, belief, simulated
    )
