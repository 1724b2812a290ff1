"""Coefficients of a step's cost from what runs show: their aggregates, or the logs of their steps.

Aggregates: at an infinite rate the schedule does not depend on step times, so duration, mean TTFT, mean TPOT and mean
ITL are linear in the coefficients, and non-negative least squares gives a start; Levenberg and Marquardt's method on
the logarithms of all metrics goes on from there, with the simulator as the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import lsq_linear, nnls

from headrace.core.state import SchedulerConfig
from headrace.errors import ConfigError
from headrace.lab.sim.cost import StepCost
from headrace.lab.sim.outcome import Outcome
from headrace.lab.sim.server import FrontEnd, Server
from headrace.lab.sim.simulate import simulate
from headrace.lab.sim.traffic import Traffic

Floats = NDArray[np.float64]

# How much a metric counts: tails and what one request decides count less.
WEIGHTS: Mapping[str, float] = {
    "duration": 2.0,
    "mean_ttft_ms": 1.0,
    "median_ttft_ms": 1.0,
    "p99_ttft_ms": 1.0,
    "mean_tpot_ms": 1.0,
    "median_tpot_ms": 1.0,
    "p99_tpot_ms": 0.5,
    "mean_itl_ms": 1.0,
    "median_itl_ms": 1.0,
    "p99_itl_ms": 0.3,
    "mean_e2el_ms": 1.0,
}
# Residuals beyond this (in logarithms) count linearly: one odd metric must not bend the rest.
_SOFT = 0.05

TERMS = tuple(f.name for f in fields(StepCost) if f.name != "knots")
FRONT = ("delay_s", "each_s")
# Steps of the difference quotients where a coefficient is zero: what would be noticed.
_UNIT: Mapping[str, float] = {
    "base_s": 1e-3,
    "token_s": 1e-5,
    "kv_token_s": 1e-8,
    "floor_s": 1e-3,
    "pair_s": 1e-11,
    "sequence_s": 1e-5,
    "row_s": 1e-5,
    "decode_only_s": 1e-3,
    "delay_s": 1e-2,
    "each_s": 1e-4,
}
_FEATURE = {
    "token_s": "tokens",
    "kv_token_s": "kv_tokens",
    "pair_s": "pairs",
    "sequence_s": "sequences",
    "row_s": "rows",
}


@dataclass(frozen=True, slots=True)
class Observation:
    """One measured run to learn from.

    traffic   what it was sent; several draws where lengths are synthetic, whose predictions are averaged
    metrics   as measured, by vLLM's keys
    ttft_s, e2e_s   of single requests, where records tell them: from sending, in the traffic's order, NaN where one
              has none or is kept back; empty: not known.  They need exactly one draw of traffic
    """

    name: str
    config: SchedulerConfig
    traffic: tuple[Traffic, ...]
    metrics: Mapping[str, float]
    ttft_s: Floats = field(default_factory=lambda: np.zeros(0))
    e2e_s: Floats = field(default_factory=lambda: np.zeros(0))

    def targets(self, weights: Mapping[str, float]) -> tuple[list[str], Floats, Floats]:
        """Names, measured values and weights of what a prediction is compared with."""
        keys = [key for key in weights if self.metrics.get(key, 0) > 0]
        names, values, scale = list(keys), [self.metrics[key] for key in keys], [weights[key] for key in keys]
        for name, column in self._columns(self.ttft_s, self.e2e_s).items():
            known = np.flatnonzero(column > 0)
            if not len(known):
                continue
            names += [f"{name}#{index}" for index in known]
            values += column[known].tolist()
            # All requests together count as much as five metrics.  A wait far below the usual one is half a step more
            # or less, which no model knows.
            share = np.minimum(1.0, column[known] / column[known].mean()) ** 2
            scale += (5.0 / len(known) * share).tolist()
        return names, np.array(values), np.array(scale)

    def predicted(self, names: Sequence[str], cost: StepCost, front: FrontEnd) -> Floats:
        """The same by simulation."""
        outcomes = [simulate(each, Server(self.config, cost, front)) for each in self.traffic]
        found = _means([outcome.metrics() for outcome in outcomes])
        if len(self.ttft_s):
            outcome = outcomes[0]
            ttft = np.where(outcome.served, (outcome.first_token_ns - outcome.sent_ns) / 1e9, 0.0)
            e2e = np.where(outcome.served, (outcome.ended_ns - outcome.sent_ns) / 1e9, 0.0)
            for name, column in self._columns(ttft, e2e).items():
                found |= {f"{name}#{index}": value for index, value in enumerate(column.tolist())}
        return np.array([max(found.get(name, 0.0), 1e-9) for name in names])

    def _columns(self, ttft_s: Floats, e2e_s: Floats) -> dict[str, Floats]:
        """Single requests' latencies: to the first token, a token after it, and in all."""
        if not len(ttft_s):
            return {}
        after = self.traffic[0].output_tokens - 1
        tpot = np.divide(e2e_s - ttft_s, after, out=np.full(len(after), np.nan), where=after > 0)
        return {"ttft_s": ttft_s, "tpot_s": tpot, "e2e_s": e2e_s}


@dataclass(frozen=True, slots=True)
class Fit:
    """What was learned.

    cost, front  the coefficients
    terms        names of those that were free
    covariance   of the free ones, in the order of `terms`
    residuals    (observation, metric) -> predicted / measured - 1
    condition    of the scaled design: above about 100 some coefficient could be anything
    loss         what is left of the robust objective
    """

    cost: StepCost
    front: FrontEnd
    terms: tuple[str, ...]
    covariance: Floats
    residuals: Mapping[tuple[str, str], float] = field(default_factory=dict)
    condition: float = 1.0
    loss: float = 0.0

    def server(self, config: SchedulerConfig) -> Server:
        return Server(config, self.cost, self.front)

    def draws(self, count: int, seed: int) -> list[tuple[StepCost, FrontEnd]]:
        """Coefficients that fit about as well: normal, never negative."""
        if not self.terms:
            return [(self.cost, self.front)] * count
        rng = np.random.default_rng([seed, 0xD12A])
        centre = _vector(self.cost, self.front, self.terms)
        sampled = rng.multivariate_normal(centre, self.covariance, size=count, method="svd")
        return [_with(self.cost, self.front, self.terms, np.maximum(x, 0.0)) for x in sampled]


def _means(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    keys = [key for key in found[0] if all(key in metrics for metrics in found)]
    return {key: float(np.mean([metrics[key] for metrics in found])) for key in keys}


def fit_runs(
    observations: Sequence[Observation],
    terms: Sequence[str] = ("base_s", "token_s", "kv_token_s", "decode_only_s"),
    *,
    start: tuple[StepCost, FrontEnd] | None = None,
    weights: Mapping[str, float] = WEIGHTS,
    rounds: int = 20,
) -> Fit:
    """Fit the named coefficients (of StepCost and FrontEnd) to the runs' metrics; the others keep `start`'s value.

    Raises ConfigError without observations, or when none of their metrics can be used.
    """
    if not observations:
        raise ConfigError("there is no run to calibrate on")
    if start is None:
        cost = linear_start(observations, terms)
        fits = [_fit(observations, terms, cost, FrontEnd(), weights, rounds)]
        if "floor_s" in terms:
            # At zero a floor is felt by no step: start once more with most of the constant in it.
            tall = replace(cost, base_s=0.3 * cost.base_s, floor_s=0.7 * cost.base_s)
            fits.append(_fit(observations, terms, tall, FrontEnd(), weights, rounds))
        return min(fits, key=lambda fit: fit.loss)
    return _fit(observations, terms, *start, weights, rounds)


def _fit(
    observations: Sequence[Observation],
    terms: Sequence[str],
    cost: StepCost,
    front: FrontEnd,
    weights: Mapping[str, float],
    rounds: int,
) -> Fit:
    targets = [run.targets(weights) for run in observations]
    if not any(names for names, _, _ in targets):
        raise ConfigError("the runs to calibrate on have no latency and no duration")
    measured = np.log(np.concatenate([values for _, values, _ in targets]))
    weight = np.sqrt(np.concatenate([scale for _, _, scale in targets]))

    def residual(x: Floats) -> Floats:
        c, f = _with(cost, front, terms, x)
        found = [run.predicted(names, c, f) for run, (names, _, _) in zip(observations, targets, strict=True)]
        left: Floats = np.log(np.concatenate(found)) - measured
        return left

    unit = np.array([_UNIT[term] for term in terms])
    x, jacobian, left = _marquardt(residual, _vector(cost, front, terms), unit, weight, rounds)
    cost, front = _with(cost, front, terms, x)
    robust = weight * _soft_weight(left)
    covariance, condition = _covariance(jacobian * robust[:, None], left * robust, unit)
    labels = [(run.name, name) for run, (names, _, _) in zip(observations, targets, strict=True) for name in names]
    told = {label: float(np.expm1(r)) for label, r in zip(labels, left, strict=True) if "#" not in label[1]}
    return Fit(cost, front, tuple(terms), covariance, told, condition, _loss(left, weight))


def linear_start(observations: Sequence[Observation], terms: Sequence[str]) -> StepCost:
    """Non-negative least squares on each run's means, and on its requests where they are known.

    Three times, since at a finite rate the schedule depends on the times.
    """
    free = [term for term in terms if term in TERMS and term != "floor_s"]
    cost = StepCost(base_s=0.01, token_s=1e-4)
    for _ in range(3):
        rows, targets = [], []
        for run in observations:
            outcome = simulate(run.traffic[0], Server(run.config, cost))
            for row, target in _linear_rows(outcome, free, run):
                rows.append(row)
                targets.append(target)
        if not rows:
            raise ConfigError("the runs to calibrate on have no mean latency and no duration")
        design = np.array(rows)
        scale = np.maximum(np.abs(design).max(axis=0), 1e-300)
        solution, _ = nnls(design / scale, np.array(targets))
        cost, _ = _with(StepCost(), FrontEnd(), free, solution / scale)
        if cost == StepCost():
            raise ConfigError("the runs to calibrate on took no time")
    return cost


def _linear_rows(outcome: Outcome, terms: Sequence[str], run: Observation) -> Iterator[tuple[Floats, float]]:
    """(row, target): row . coefficients should be the target, for this schedule; both weighted."""
    columns = [_feature(outcome, term) for term in terms]
    done = np.concatenate([np.zeros((1, len(terms))), np.cumsum(np.stack(columns, axis=1), axis=0)])
    first, ends = outcome.first_runs, outcome.ends_ns
    served = np.flatnonzero(outcome.served & (first >= 0))
    begun = outcome.runs[first[served], 1] + 1
    last = np.searchsorted(ends, outcome.ended_ns[served], "left") + 1
    queued = np.searchsorted(ends, outcome.sent_ns[served], "left")
    waits, decode = done[begun] - done[queued], done[last] - done[begun]
    after = outcome.traffic.output_tokens[served] - 1
    many = after > 0
    means = [("duration", done[-1], 1.0, 2.0), ("mean_ttft_ms", waits.mean(axis=0), 1e-3, 1.0)]
    if many.any():
        means.append(("mean_tpot_ms", (decode[many] / after[many, None]).mean(axis=0), 1e-3, 0.5))
        means.append(("mean_itl_ms", decode.sum(axis=0) / after.sum(), 1e-3, 1.0))
    for key, row, unit, weight in means:
        if run.metrics.get(key, 0.0) > 0:
            yield row * (weight / (run.metrics[key] * unit)), weight
    for column, rows in ((run.ttft_s, waits), (run.e2e_s, done[last] - done[queued])):
        if len(column):
            known = column[served]
            told = np.flatnonzero(known > 0)
            if len(told):
                # Long waits tell more than short ones, which half a step more or less changes.
                scale = np.sqrt(5.0 / len(told)) / float(known[told].mean())
                yield from ((rows[index] * scale, float(known[index]) * scale) for index in told)


def _feature(outcome: Outcome, term: str) -> Floats:
    busy = outcome.step("tokens") > 0
    if term == "base_s":
        return np.asarray(busy, float)
    if term == "decode_only_s":
        return np.asarray(busy & (outcome.step("prefill_tokens") == 0), float)
    return np.asarray(outcome.step(_FEATURE[term]), float)


def _marquardt(
    residual: Callable[[Floats], Floats], x: Floats, unit: Floats, weight: Floats, rounds: int
) -> tuple[Floats, Floats, Floats]:
    """Levenberg and Marquardt's method with bounds, on the soft-L1 loss; returns x, the Jacobian and the residuals."""
    left = residual(x)
    best, damping = _loss(left, weight), 1e-3
    jacobian = _jacobian(residual, x, left, unit)
    for _ in range(rounds):
        robust = weight * _soft_weight(left)
        scaled = jacobian * robust[:, None] * unit
        size = np.sqrt((scaled**2).sum(axis=0))
        gained = 0.0
        while gained <= 0 and damping < 1e4:
            # Damped by each coefficient's own weight: those that the runs do not tell apart must not run away.
            step = lsq_linear(
                np.concatenate([scaled, np.sqrt(damping) * np.diag(size + 1e-6 * size.max())]),
                np.concatenate([-left * robust, np.zeros(len(x))]),
                bounds=(-x / unit - 1e-12, np.inf),
            ).x
            trial = np.maximum(x + step * unit, 0.0)
            tried = residual(trial)
            gained = best - _loss(tried, weight)
            damping = damping * 8 if gained <= 0 else max(damping / 5, 1e-6)
        if gained <= 0:
            break
        x, left, best = trial, tried, best - gained
        jacobian = _jacobian(residual, x, left, unit)
        if gained < 1e-3 * best:
            break
    return x, jacobian, left


def _jacobian(residual: Callable[[Floats], Floats], x: Floats, left: Floats, unit: Floats) -> Floats:
    """Forward differences over 3 %: smaller ones would see the jumps of single requests, not the trend."""
    columns = []
    for j, value in enumerate(x):
        step = max(0.03 * value, 0.1 * unit[j])
        moved = x.copy()
        moved[j] += step
        columns.append((residual(moved) - left) / step)
    return np.stack(columns, axis=1)


def _loss(left: Floats, weight: Floats) -> float:
    return float((weight**2 * 2 * _SOFT**2 * (np.sqrt(1 + (left / _SOFT) ** 2) - 1)).sum())


def _soft_weight(left: Floats) -> Floats:
    """Square root of the weight that makes least squares of the residuals the soft-L1 loss."""
    weight: Floats = (1 + (left / _SOFT) ** 2) ** -0.25
    return weight


def _covariance(scaled: Floats, left: Floats, unit: Floats) -> tuple[Floats, float]:
    count, free = scaled.shape
    design = scaled * unit
    norm = np.sqrt((design**2).sum(axis=0))
    norm[norm == 0] = 1.0
    singular = np.linalg.svd(design / norm, compute_uv=False)
    condition = float(singular[0] / max(singular[-1], 1e-12))
    variance = float((left**2).sum()) / max(1, count - free)
    inverse = np.linalg.pinv(design.T @ design, rcond=1e-10, hermitian=True)
    covariance: Floats = variance * inverse * np.outer(unit, unit)
    return covariance, condition


def _vector(cost: StepCost, front: FrontEnd, terms: Sequence[str]) -> Floats:
    return np.array([getattr(front if term in FRONT else cost, term) for term in terms], float)


def _with(cost: StepCost, front: FrontEnd, terms: Sequence[str], x: Floats) -> tuple[StepCost, FrontEnd]:
    values: dict[str, Any] = dict(zip(terms, map(float, x), strict=True))
    return (
        replace(cost, **{name: value for name, value in values.items() if name not in FRONT}),
        replace(front, **{name: value for name, value in values.items() if name in FRONT}),
    )
