"""Predictions with intervals: every source of doubt is simulated, none is added by hand.

Coefficients are drawn from the fit, lengths and arrivals from their seeds, and what the model misses from the residuals
that it left on the runs it was fitted to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from headrace.core.state import SchedulerConfig
from headrace.errors import ConfigError
from headrace.lab.sim.fit import Fit
from headrace.lab.sim.server import Server
from headrace.lab.sim.simulate import simulate
from headrace.lab.sim.traffic import Traffic

COVERAGE = 0.90
# Fewer samples than this beyond a quantile, and it is one request's luck.
_LEAST_IN_TAIL = 10


@dataclass(frozen=True, slots=True)
class Prediction:
    """One cell's metrics by vLLM's keys, with the 90 % interval of each.

    asked, served   requests, on average over the draws: fewer served than asked is a truncated cell
    preemptions     on average
    caveats         sentences: what these figures lean on without having seen it
    """

    name: str
    metrics: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    asked: int = 0
    served: float = 0.0
    preemptions: float = 0.0
    caveats: tuple[str, ...] = ()


def predict_cell(
    name: str,
    config: SchedulerConfig,
    traffic: Sequence[Traffic],
    fit: Fit,
    *,
    draws: int = 64,
    seed: int = 0,
    seen: Mapping[str, tuple[float, float]] | None = None,
) -> Prediction:
    """The metrics with the fitted coefficients, averaged over `traffic`, and intervals from `draws` further runs.

    traffic  one entry for known lengths and arrivals; several seeds where they are not known
    seen     range of the steps that the fit has seen, by feature
    """
    outcomes = [simulate(each, fit.server(config)) for each in traffic]
    found = [outcome.metrics() for outcome in outcomes]
    keys = [key for key in found[0] if all(key in one for one in found)]
    centre = {key: float(np.mean([one[key] for one in found])) for key in keys}
    caveats = list(_beyond([outcome.step("tokens") for outcome in outcomes], (seen or {}).get("tokens")))
    preemptions = float(np.mean([outcome.preemptions.sum() for outcome in outcomes]))
    if preemptions > 0.1 * len(traffic[0]):
        caveats.append(f"{preemptions:.0f} preemptions: small errors of lengths and blocks grow here")
    return Prediction(
        name,
        centre,
        _intervals(config, traffic, fit, centre, draws, seed),
        asked=len(traffic[0]),
        served=float(np.mean([outcome.served.sum() for outcome in outcomes])),
        preemptions=preemptions,
        caveats=tuple(caveats),
    )


def _intervals(
    config: SchedulerConfig, traffic: Sequence[Traffic], fit: Fit, centre: Mapping[str, float], draws: int, seed: int
) -> dict[str, tuple[float, float]]:
    if draws < 2:
        return {}
    rng = np.random.default_rng([seed, 0x1217])
    left = {key: [error for (_, metric), error in fit.residuals.items() if metric == key] for key in centre}
    samples: dict[str, list[float]] = {key: [] for key in centre}
    for number, (cost, front) in enumerate(fit.draws(draws, seed)):
        metrics = simulate(traffic[number % len(traffic)], Server(config, cost, front)).metrics()
        for key in centre:
            if key in metrics:
                # What the model missed on one run, with either sign: the next run may be missed the other way.
                miss = rng.choice(left[key]) * rng.choice((-1.0, 1.0)) if left[key] else 0.0
                samples[key].append(metrics[key] / (1 + miss))
    tail = 100 * (1 - COVERAGE) / 2
    found = {}
    for key, values in samples.items():
        if values:
            low, high = np.percentile(values, [tail, 100 - tail])
            found[key] = (min(float(low), centre[key]), max(float(high), centre[key]))
    return found


def _beyond(tokens: Sequence[np.ndarray], seen: tuple[float, float] | None) -> Sequence[str]:
    if seen is None:
        return ()
    largest = max(int(each.max(initial=0)) for each in tokens)
    if largest > 1.05 * seen[1]:
        return (f"has steps of {largest} tokens, the calibration {seen[1]:.0f} at most",)
    return ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a cell meets a goal: True, False, or None when the prediction cannot tell."""

    metric: str
    bound: float
    met: bool | None
    why: str


def judge(prediction: Prediction, goals: Mapping[str, float]) -> tuple[Verdict, ...]:
    """Each goal (an upper bound by metric; a lower one for throughputs) against the interval.

    Abstains inside the interval, and on a quantile that rests on fewer than ten requests.  Raises ConfigError for a
    metric that is not predicted.
    """
    verdicts = []
    for metric, bound in goals.items():
        if metric not in prediction.metrics:
            raise ConfigError(f"there is no metric {metric!r} (known: {', '.join(sorted(prediction.metrics))})")
        value = prediction.metrics[metric]
        low, high = prediction.intervals.get(metric, (value, value))
        at_least = metric.endswith("throughput")
        quantile = _quantile(metric)
        if quantile is not None and prediction.served * (1 - quantile) < _LEAST_IN_TAIL:
            why = f"{metric} of {prediction.served:.0f} requests rests on fewer than {_LEAST_IN_TAIL}; simulate more"
            verdicts.append(Verdict(metric, bound, None, why))
        elif low <= bound <= high and low < high:
            why = f"{metric} lies between {low:.4g} and {high:.4g}, on both sides of {bound:g}; a measured run decides"
            verdicts.append(Verdict(metric, bound, None, why))
        else:
            met = value >= bound if at_least else value <= bound
            verdicts.append(Verdict(metric, bound, met, f"{metric} is {value:.4g} ({low:.4g} to {high:.4g})"))
    return tuple(verdicts)


def _quantile(metric: str) -> float | None:
    word = metric.partition("_")[0]
    try:
        return float(word.removeprefix("p")) / 100 if word.startswith("p") else None
    except ValueError:
        return None


def error_of(predicted: float, measured: float) -> float:
    """predicted / measured - 1; NaN where nothing was measured."""
    return predicted / measured - 1 if measured else math.nan
