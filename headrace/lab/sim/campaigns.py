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
from headrace.lab.records.results import Cell, RunResult, Study
from headrace.lab.records.store import read_run
from headrace.lab.sim.blocks import notes_on, scheduler_config, seen_by
from headrace.lab.sim.calibration import Calibration
from headrace.lab.sim.fit import Fit, Observation, fit_runs
from headrace.lab.sim.predict import Prediction, predict_cell
from headrace.lab.sim.rows import measured_means
from headrace.lab.sim.traffic import Traffic, traffic_from_records

# A step's constant, its tokens, the context that its decodes read, what each sequence costs the host, and the way from
# the client to the scheduler.
TERMS = ("base_s", "token_s", "kv_token_s", "sequence_s", "delay_s", "each_s")
# Metrics that say whether the model holds; the tails of others rest on single requests.
SHOWN = ("duration", "mean_ttft_ms", "median_ttft_ms", "p99_ttft_ms", "median_tpot_ms", "median_itl_ms", "mean_e2el_ms")
_MOST_CALIBRATING = 4
_CLIENT = "client"


@dataclass(frozen=True, slots=True)
class Measured:
    """One measured cell as the simulator needs it: its first believable run."""

    name: str
    config: SchedulerConfig
    traffic: Traffic
    ttft_s: np.ndarray
    e2e_s: np.ndarray
    metrics: Mapping[str, float]
    settings: Mapping[str, Any]

    def observation(self, every: int = 1) -> Observation:
        """What a fit may learn from it: all of its requests, or every second one (then no aggregates)."""
        kept = np.arange(len(self.ttft_s)) % every == 0
        return Observation(
            self.name,
            self.config,
            (self.traffic,),
            self.metrics if every == 1 else {},
            np.where(kept, self.ttft_s, np.nan),
            np.where(kept, self.e2e_s, np.nan),
        )


def resimulated(study: Study, home: Path) -> Study:
    """The study with `simulation`: predictions of every cell that was measured in `home`, or why there are none."""
    try:
        cells = read_measured(study, home)
        if not cells:
            raise ConfigError("no cell has records that can be simulated")
        calibration, names = calibrate_on_campaign(cells)
        predictions = [
            predict_cell(cell.name, cell.config, (cell.traffic,), calibration.fit, seen=calibration.seen)
            for cell in cells
        ]
    except HeadraceError as error:
        return replace(study, simulation={"reason": f"not simulated: {error}"})
    return replace(study, simulation=_told(study, calibration, names, predictions))


def calibrate_on_campaign(cells: Sequence[Measured], names: Sequence[str] | None = None) -> tuple[Calibration, list[str]]:
    """Learn from the named cells, or from a choice that spans the settings.

    With fewer than three cells nothing would be left to predict: then every second request of each is learned from.
    """
    if names is None:
        names = choose(cells)
    chosen = [cell for cell in cells if cell.name in names]
    every = 1 if len(chosen) < len(cells) or len(cells) > 2 else 2
    observations = [cell.observation(every) for cell in chosen]
    fit = fit_runs(observations, TERMS)
    common = {
        key: value
        for key, value in chosen[0].settings.items()
        if key in ("num_blocks", "block_size", "max_model_len", "enable_prefix_caching")
        and all(cell.settings.get(key) == value for cell in chosen)
    }
    notes = notes_on(fit)
    if every == 2:
        notes += ("learned from every second request: there are too few cells to keep some back",)
    return Calibration(fit, "records", tuple(names), seen_by(observations, fit), notes, common), list(names)


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
        run = next((run for run in cell.runs if not run.invalid), None)
        if run is None or "policy" not in cell.settings:
            continue
        measured = _measured(cell, run, home)
        if measured is not None:
            found.append(measured)
    return found


def _measured(cell: Cell, run: RunResult, home: Path) -> Measured | None:
    directory = home / run.source
    client = directory / _CLIENT if (directory / _CLIENT).is_dir() else directory
    settings = {**run.settings, **cell.settings}
    if "num_blocks" not in settings or not client.is_dir():
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
    settings = {key: value for key, value in settings.items() if value is not None and value != "auto"}
    config = scheduler_config(settings, settings["num_blocks"])
    return Measured(cell.name, config, traffic, ttft, e2e, run.metrics, settings)


def _told(study: Study, calibration: Calibration, names: Sequence[str], predictions: Sequence[Prediction]) -> dict[str, Any]:
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
