"""What every setting would score, from simulations and the few that were measured.

The simulator knows most of it.  What it misses is smooth in the settings, so the logarithms of measured over simulated
are spread to the neighbours by a Gaussian process: near a measured cell the prediction is as good as the measurement,
far from all of them it is as good as the simulator.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]

# Before anything is known: what a calibrated simulator misses, and what a repeat of the same run differs by.
MISS, NOISE = 0.08, 0.015
# How far what was learned reaches: doublings of a budget or of the seats; a switch is as far as two doublings.
REACH = 1.3
_SWITCH = 2.0
# Measured cells that the first guess of the scatter weighs as much as.
_DOUBT = 6


def coordinates(settings: Sequence[Mapping[str, Any]]) -> Floats:
    """`[cells, settings that vary]`: numbers by their doublings, switches and words by their place."""
    keys = [key for key in dict.fromkeys(key for each in settings for key in each) if _varies(settings, key)]
    columns = []
    for key in keys:
        values: list[Any] = [each.get(key) for each in settings]
        if all(isinstance(value, int | float) and not isinstance(value, bool) and value > 0 for value in values):
            columns.append([math.log2(value) for value in values])
        else:
            order = sorted({repr(value) for value in values})
            columns.append([_SWITCH * order.index(repr(value)) for value in values])
    return np.array(columns, float).T.reshape(len(settings), len(keys))


def _varies(settings: Sequence[Mapping[str, Any]], key: str) -> bool:
    return len({repr(each.get(key)) for each in settings}) > 1


@dataclass(frozen=True, slots=True)
class Expected:
    """What simulations say of every cell: its score without regard to the bounds, and how far it exceeds the worst of
    them (logarithm; -inf without bounds)."""

    scores: Floats
    excess: Floats


@dataclass(frozen=True, slots=True)
class Belief:
    """Scores in logarithms, one entry a cell: mean and standard deviation; -inf where nothing is expected.

    keeps   the chance that the cell keeps the bounds; 0 or 1 where it was measured
    """

    mean: Floats
    deviation: Floats
    keeps: Floats


def believe(
    expected: Expected,
    where: Floats,
    measured: Mapping[int, Sequence[float]],
    excess: Mapping[int, float],
    noise: float,
) -> Belief:
    """Simulated scores corrected by the measured ones.

    where      coordinates of the cells
    measured   cell -> scores of its runs, without regard to the bounds; 0 where a run failed
    excess     cell -> its mean excess over the bounds, as measured
    noise      standard deviation of the logarithm of one run
    """
    simulated = expected.scores
    floor = np.full(len(simulated), -np.inf)
    prior = np.log(simulated, out=floor, where=simulated > 0)
    known = [cell for cell, scores in measured.items() if min(scores) > 0 and np.isfinite(prior[cell])]
    deviation = np.where(np.isfinite(prior), MISS, 0.0)
    mean = prior.copy()
    if known:
        ratio = np.array([np.mean(np.log(measured[cell])) - prior[cell] for cell in known])
        runs = np.array([len(measured[cell]) for cell in known])
        level = _level(ratio, where[known], noise**2 / runs)
        # What is left after a common factor tells how far the simulator's misses really scatter; a few runs are not
        # believed when they say that it hardly misses at all.
        scatter = math.sqrt((_DOUBT * MISS**2 + float(((ratio - level) ** 2).sum())) / (_DOUBT + len(known)))
        gram = scatter**2 * _kernel(where[known], where[known]) + np.diag(noise**2 / runs)
        across = scatter**2 * _kernel(where, where[known])
        solved = np.linalg.solve(gram, np.column_stack([ratio - level, across.T]))
        mean = prior + level + across @ solved[:, 0]
        left = scatter**2 - np.einsum("ij,ji->i", across, solved[:, 1:])
        deviation = np.where(np.isfinite(prior), np.sqrt(np.maximum(left, (0.1 * noise) ** 2)), 0.0)
    keeps = _keeps(expected.excess, where, excess)
    for cell, scores in measured.items():
        if min(scores) <= 0:  # it failed: it cannot be chosen
            mean[cell], deviation[cell], keeps[cell] = -np.inf, 0.0, 0.0
        elif not np.isfinite(prior[cell]):
            mean[cell], deviation[cell] = float(np.mean(np.log(scores))), noise / math.sqrt(len(scores))
    return Belief(mean, deviation, keeps)


def _keeps(simulated: Floats, where: Floats, measured: Mapping[int, float]) -> Floats:
    """The chance of each cell to keep the bounds: the simulated excess, shifted by what measured neighbours differ."""
    finite = np.isfinite(simulated)
    if not finite.any():
        return np.where(simulated < 0, 1.0, 0.0)
    known = [cell for cell, value in measured.items() if finite[cell] and math.isfinite(value)]
    mean, spread = simulated.copy(), np.full(len(simulated), 2 * MISS)
    if known:
        gram = spread[known][:, None] * _kernel(where[known], where[known]) * spread[known] + np.eye(len(known)) * 1e-4
        across = spread[:, None] * _kernel(where, where[known]) * spread[known]
        mean = simulated + across @ np.linalg.solve(gram, np.array([measured[c] - simulated[c] for c in known]))
        left = spread**2 - np.einsum("ij,ji->i", across, np.linalg.solve(gram, across.T))
        spread = np.sqrt(np.maximum(left, 1e-4))
    keeps: Floats = stats.norm.cdf(-mean / spread)
    for cell, value in measured.items():
        keeps[cell] = 1.0 if value <= 0 else 0.0
    return keeps


def _level(ratio: Floats, where: Floats, variance: Floats) -> float:
    """The common factor, with neighbours counted less than strangers."""
    gram = MISS**2 * _kernel(where, where) + np.diag(variance + 1e-8)
    weight = np.linalg.solve(gram, np.ones(len(ratio)))
    return float(weight @ ratio / weight.sum())


def _kernel(a: Floats, b: Floats) -> Floats:
    distance = ((a[:, None, :] - b[None, :, :]) ** 2).sum(axis=-1)
    kernel: Floats = np.exp(-0.5 * distance / REACH**2)
    return kernel
