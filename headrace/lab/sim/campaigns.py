"""Every measured campaign is simulated again: calibrated on some of its cells, the others are predicted and compared.

What agrees is explained by scheduling and the cost of a step.  What does not is something else: the front end, the
client, another process, or a setting that the server did not state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from headrace.core.state import SchedulerConfig
from headrace.errors import ConfigError, HeadraceError
from headrace.lab.metrics.result import STEPS
from headrace.lab.records.results import Cell, RunResult, Study
from headrace.lab.records.store import read_run
from headrace.lab.sim.blocks import notes_on, scheduler_config, seen_by
from headrace.lab.sim.calibration import Calibration
from headrace.lab.sim.fit import FRONT, Fit, Observation, fit_runs
from headrace.lab.sim.predict import Prediction, predict_cell
from headrace.lab.sim.rows import measured_means
from headrace.lab.sim.server import FrontEnd
from headrace.lab.sim.steplog import calibrate_on_steps, merged, read_step_log
from headrace.lab.sim.traffic import Traffic, traffic_from_records

# A step's constant, its tokens, the context that its decodes read, and the way from the client to the scheduler: more
# than records tell apart helps no prediction.
TERMS = ("base_s", "token_s", "kv_token_s", "delay_s")
# Metrics that say whether the model holds; the tails of others rest on single requests.
SHOWN = ("duration", "mean_ttft_ms", "median_ttft_ms", "p99_ttft_ms", "median_tpot_ms", "median_itl_ms", "mean_e2el_ms")
_MOST_CALIBRATING = 4
_CLIENT = "client"
_SAME_POOL = 0.05


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """What one run sent and saw.

    ttft_s, e2e_s      of single requests from their sending, in the traffic's order; NaN where one failed
    records, step_log  where its records are, and its server's step log if there is one
    """

    traffic: Traffic
    ttft_s: np.ndarray
    e2e_s: np.ndarray
    metrics: Mapping[str, float]
    records: Path
    step_log: Path


@dataclass(frozen=True, slots=True)
class Measured:
    """One measured cell as the simulator needs it, with its believable runs: a machine's mood is in each of them."""

    name: str
    config: SchedulerConfig
    settings: Mapping[str, Any]
    runs: tuple[MeasuredRun, ...]

    @property
    def traffic(self) -> tuple[Traffic, ...]:
        return tuple(run.traffic for run in self.runs)

    def observations(self, every: int = 1) -> list[Observation]:
        """What a fit may learn from it: all requests of its runs, or every second one (then no aggregates)."""
        found = []
        for number, run in enumerate(self.runs, 1):
            kept = np.arange(len(run.ttft_s)) % every == 0
            found.append(
                Observation(
                    self.name if len(self.runs) == 1 else f"{self.name} run {number}",
                    self.config,
                    (run.traffic,),
                    run.metrics if every == 1 else {},
                    np.where(kept, run.ttft_s, np.nan),
                    np.where(kept, run.e2e_s, np.nan),
                )
            )
        return found


def resimulated(study: Study, home: Path) -> Study:
    """The study with `simulation`: predictions of every cell that was measured in `home`, or why there are none."""
    try:
        cells = read_measured(study, home)
        if not cells:
            raise ConfigError("no cell has records that can be simulated")
        told = [_simulated(study, group) for group in _by_target(cells)]
    except HeadraceError as error:
        return replace(study, simulation={"reason": f"not simulated: {error}"})
    return replace(study, simulation=_joined(told))


def _by_target(cells: Sequence[Measured]) -> list[list[Measured]]:
    """What a step costs is a question to one server at a time."""
    groups: dict[str, list[Measured]] = {}
    for cell in cells:
        groups.setdefault(repr(cell.settings.get("target")), []).append(cell)
    return list(groups.values())


def _simulated(study: Study, cells: Sequence[Measured]) -> dict[str, Any]:
    calibration, names = calibrate_on_campaign(cells)
    predictions = [
        predict_cell(cell.name, cell.config, cell.traffic, calibration.fit, seen=calibration.seen) for cell in cells
    ]
    return _told(study, calibration, names, predictions)


def _joined(told: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One account of all targets; the cost is told where there is one."""
    return {
        "calibrated_on": [name for each in told for name in each["calibrated_on"]],
        "halves": all(each["halves"] for each in told),
        "cost": told[0]["cost"] if len(told) == 1 else {},
        "notes": list(dict.fromkeys(note for each in told for note in each["notes"])),
        "cells": [row for each in told for row in each["cells"]],
    }


def calibrate_on_campaign(
    cells: Sequence[Measured], names: Sequence[str] | None = None
) -> tuple[Calibration, list[str]]:
    """Learn from the named cells, or from a choice that spans the settings.

    With fewer than three cells nothing would be left to predict: then every second request of each is learned from.
    """
    if names is None:
        names = choose(cells)
    chosen = [cell for cell in cells if cell.name in names]
    every = 1 if len(chosen) < len(cells) or len(cells) > 2 else 2
    observations = [each for cell in chosen for each in cell.observations(every)]
    paths = [run.step_log for cell in chosen for run in cell.runs]
    if all(path.is_file() for path in paths):
        # Every step is known: only the way from the client to the scheduler is left to learn.
        by_steps = calibrate_on_steps(merged([read_step_log(path) for path in paths]), ", ".join(names))
        fit = fit_runs(observations, FRONT, start=(by_steps.fit.cost, FrontEnd()))
        source, extra = "step logs and records", by_steps.notes
    else:
        fit = fit_runs(observations, TERMS)
        source, extra = "records", ()
    common = {
        key: value
        for key, value in chosen[0].settings.items()
        if key in ("num_blocks", "block_size", "max_model_len", "enable_prefix_caching")
        and all(cell.settings.get(key) == value for cell in chosen)
    }
    notes = (*notes_on(fit), *extra)
    if every == 2:
        notes += ("learned from every second request: there are too few cells to keep some back",)
    return Calibration(fit, source, tuple(names), seen_by(observations, fit), notes, common), list(names)


def choose(cells: Sequence[Measured]) -> list[str]:
    """Cells that span policies and budgets, at most a third of them (and four): the first, the last and between."""
    if len(cells) < 3:
        return [cell.name for cell in cells]
    ordered = sorted(
        cells, key=lambda cell: (cell.config.policy, cell.config.max_num_batched_tokens, cell.config.max_num_seqs)
    )
    count = min(_MOST_CALIBRATING, max(2, len(cells) // 3))
    places = sorted({round(i * (len(ordered) - 1) / (count - 1)) for i in range(count)})
    return [ordered[place].name for place in places]


def read_measured(study: Study, home: Path) -> list[Measured]:
    """The cells whose runs left records in `home` and whose servers stated what scheduling depends on."""
    found = []
    for cell in study.cells:
        runs = [(_settings(cell, run), run) for run in cell.runs if not run.invalid]
        runs = [(settings, run) for settings, run in runs if {"num_blocks", "policy"} <= settings.keys()]
        if not runs:
            continue
        # The pool follows the free memory of the moment; a run with quite another one is another cell to the scheduler.
        settings, blocks = runs[0][0], runs[0][0]["num_blocks"]
        alike = [(own, run) for own, run in runs if abs(own["num_blocks"] / blocks - 1) <= _SAME_POOL]
        read = tuple(each for own, run in alike if (each := _measured(own, run, home)) is not None)
        if read:
            found.append(Measured(cell.name, scheduler_config(settings, blocks), settings, read))
    return found


def _settings(cell: Cell, run: RunResult) -> dict[str, Any]:
    """What a run's server stated; what the plan says goes first."""
    settings = {**run.settings, **cell.settings}
    return {key: value for key, value in settings.items() if value is not None and value != "auto"}


def _measured(settings: Mapping[str, Any], run: RunResult, home: Path) -> MeasuredRun | None:
    directory = home / run.source
    client = directory / _CLIENT if (directory / _CLIENT).is_dir() else directory
    if not client.is_dir():
        return None
    manifest, records = read_run(client)
    ordered = sorted(records, key=lambda record: (record.planned_ns, record.index))
    limit = settings.get("max_concurrency")
    traffic = traffic_from_records(
        ordered, start_ns=int(manifest["start_ns"]), max_concurrency=limit if isinstance(limit, int) else None
    )
    ttft, e2e = np.full(len(ordered), np.nan), np.full(len(ordered), np.nan)
    for index, record in enumerate(ordered):
        if record.ok and record.chunks:
            ttft[index] = (record.chunks[0].t_ns - record.sent_ns) / 1e9
            e2e[index] = (record.chunks[-1].t_ns - record.sent_ns) / 1e9
    return MeasuredRun(traffic, ttft, e2e, run.metrics, client, directory / STEPS)


def _told(
    study: Study, calibration: Calibration, names: Sequence[str], predictions: Sequence[Prediction]
) -> dict[str, Any]:
    measured = {cell.name: measured_means(cell) for cell in study.cells}
    halves = len(names) == len(predictions)
    return {
        "calibrated_on": list(names),
        "halves": halves,
        "cost": _coefficients(calibration.fit),
        "notes": list(calibration.notes),
        "cells": [
            {
                "cell": each.name,
                "calibration": each.name in names and not halves,
                "metrics": {
                    key: {
                        "measured": measured[each.name][key],
                        "simulated": each.metrics[key],
                        "interval": list(each.intervals.get(key, (each.metrics[key],) * 2)),
                    }
                    for key in SHOWN
                    if measured[each.name].get(key, 0) > 0 and key in each.metrics
                },
                "caveats": list(each.caveats),
            }
            for each in predictions
        ],
    }


def _coefficients(fit: Fit) -> dict[str, float]:
    front = {"delay_s": fit.front.delay_s, "each_s": fit.front.each_s}
    return {**fit.cost.to_json(), **{name: value for name, value in front.items() if value}}
