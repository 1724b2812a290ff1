"""From a plan, or a table of published rounds, to its predicted cells."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headrace.errors import ConfigError
from headrace.lab.campaign.cells import PlannedCell, cells
from headrace.lab.campaign.plan import read_plan
from headrace.lab.records.foreign import read_paths, study_from_runs
from headrace.lab.records.published import load_published
from headrace.lab.records.results import CellStatus, study_from_json
from headrace.lab.sim.blocks import calibrate_on_blocks, predict_blocks, scheduler_config
from headrace.lab.sim.calibration import Calibration
from headrace.lab.sim.predict import judge, predict_cell
from headrace.lab.sim.rows import Row, compared_rows, prediction_row
from headrace.lab.sim.traffic import traffic_from_spec

# Enough for any workload: where a plan and its calibration know no pool, preemption cannot be predicted.
_AMPLE_BLOCKS = 1 << 20


def is_table_of_rounds(path: Path) -> bool:
    """Whether a file is a table of published rounds, not a plan."""
    return "round" in _toml(path)


def simulate_rounds(path: Path, *, draws: int) -> list[Row]:
    """Calibrate on the rounds that the table names, and predict them all.  Raises ConfigError naming the file."""
    study = load_published(path)
    named = _toml(path).get("simulation", {}).get("calibrate-on")
    if not isinstance(named, list) or not named:
        raise ConfigError(f"{path} names no rounds to calibrate on: [simulation] calibrate-on = [...]")
    known = {cell.name: cell for cell in study.cells}
    if unknown := [name for name in named if name not in known]:
        raise ConfigError(f"{path}: [simulation] calibrate-on has no round {unknown[0]!r} (rounds: {', '.join(known)})")
    calibration, workload = calibrate_on_blocks([known[name] for name in named])
    return compared_rows(study, predict_blocks(study, calibration, workload, draws=draws), named)


def calibrate_on_files(paths: Sequence[Path], names: Sequence[str] | None) -> Calibration:
    """Learn from printed result blocks: logs, result files, or a table of published rounds.  Raises ConfigError."""
    if len(paths) == 1 and paths[0].suffix == ".toml":
        study = load_published(paths[0])
    elif len(paths) == 1 and (paths[0] / "study.json").is_file():
        study = study_from_json((paths[0] / "study.json").read_text(encoding="utf-8"), source=str(paths[0]))
    else:
        runs = read_paths(list(paths)).runs
        if not runs:
            raise ConfigError(f"no result could be read from {paths[0]}")
        study = study_from_runs(runs, "blocks", "blocks")
    known = {cell.name: cell for cell in study.cells if cell.runs}
    if unknown := [name for name in names or [] if name not in known]:
        raise ConfigError(f"there is no cell {unknown[0]!r} (cells: {', '.join(known)})")
    chosen = (
        names if names is not None else [name for name, cell in known.items() if cell.status is not CellStatus.DEGRADED]
    )
    return calibrate_on_blocks([known[name] for name in chosen])[0]


def simulate_plan(path: Path, calibration: Calibration, goals: Mapping[str, float], *, draws: int) -> list[Row]:
    """Predict each legal cell of a plan; an illegal one is a row with its rule and reason."""
    plan = read_plan(path)
    traffic = traffic_from_spec(plan.workload_spec())
    rows: list[Row] = []
    for cell in cells(plan):
        if not cell.legal:
            rows.append({"cell": cell.name, "status": "illegal", "rule": cell.rule, "reason": cell.reason})
            continue
        settings, unknown = _known_settings(cell, calibration)
        config = scheduler_config(settings, settings["num_blocks"])
        prediction = predict_cell(cell.name, config, (traffic,), calibration.fit, draws=draws, seen=calibration.seen)
        row = prediction_row(prediction, judge(prediction, goals))
        row["caveats"] = [*unknown, *row["caveats"]]
        rows.append(row)
    return rows


def _known_settings(cell: PlannedCell, calibration: Calibration) -> tuple[dict[str, Any], list[str]]:
    """The cell's settings, with what the calibration's server stated where the plan leaves it open."""
    settings = {**calibration.settings, **cell.settings}
    blocks = cell.settings.get("num_gpu_blocks_override", calibration.settings.get("num_blocks"))
    if blocks is None:
        return {**settings, "num_blocks": _AMPLE_BLOCKS}, ["the number of KV blocks is not known: taken as ample"]
    return {**settings, "num_blocks": blocks}, []


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such plan") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as a plan: {error}") from None
