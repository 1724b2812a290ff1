"""headrace predicted by its own simulator: calibrated on four measured cells, the others predicted and compared.

    headrace run PLAN --out runs/a            (and further campaigns of the same model: other rates, other policies)
    python benchmarks/own_engine.py runs/a [runs/b ...] [--on CELL ...] [--records-only] [--json FILE]

Four cells of the first campaign calibrate (named, or chosen to span policies and budgets); every other cell of every
campaign is predicted with its own arrivals and lengths and compared with the mean of its runs.  Prints an error a
metric, and how many cells lie within 5 % (means and medians) and 12 % (p99).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from headrace.lab.records.results import study_from_json
from headrace.lab.sim.campaigns import Measured, calibrate_on_campaign, choose, read_measured
from headrace.lab.sim.predict import error_of, predict_cell
from headrace.lab.sim.rows import measured_means

LIMITS = {
    "duration": 0.05,
    "total_token_throughput": 0.05,
    "mean_ttft_ms": 0.05,
    "median_ttft_ms": 0.05,
    "p99_ttft_ms": 0.12,
    "mean_tpot_ms": 0.05,
    "median_tpot_ms": 0.05,
    "p99_tpot_ms": 0.12,
    "mean_itl_ms": 0.05,
    "median_itl_ms": 0.05,
    "p99_itl_ms": 0.12,
    "mean_e2el_ms": 0.05,
    "median_e2el_ms": 0.05,
    "p99_e2el_ms": 0.12,
}


def measured(home: Path) -> tuple[list[Measured], dict[str, dict[str, float]], dict[str, float]]:
    """Cells with their runs' records; the mean over runs by cell; and the runs' relative spread by metric."""
    study = study_from_json((home / "study.json").read_text(encoding="utf-8"), source=str(home))
    means = {cell.name: measured_means(cell) for cell in study.cells}
    spreads = {}
    for key in LIMITS:
        each = [
            np.std(values, ddof=1) / np.mean(values)
            for cell in study.cells
            if len(values := [run.metrics[key] for run in cell.runs if key in run.metrics]) > 1
        ]
        spreads[key] = float(np.median(each)) if each else float("nan")
    return read_measured(study, home), means, spreads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("campaigns", nargs="+", type=Path)
    parser.add_argument("--on", nargs="+", help="cells of the first campaign that calibrate; default: chosen")
    parser.add_argument(
        "--records-only", action="store_true", help="learn from the client's records, not from step logs"
    )
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    cells, means, spreads = measured(args.campaigns[0])
    if args.records_only:
        forgotten = Path("none")
        cells = [replace(c, runs=tuple(replace(run, step_log=forgotten) for run in c.runs)) for c in cells]
    names = args.on or choose(cells)
    calibration, names = calibrate_on_campaign(cells, names)
    print(f"calibrated on {', '.join(names)} ({calibration.source})")
    for note in calibration.notes:
        print(f"  {note}")
    cost = {term: getattr(calibration.fit.cost, term, None) for term in ("base_s", "token_s", "kv_token_s")}
    print("  " + ", ".join(f"{key} {value:.3g}" for key, value in cost.items() if value is not None))
    rows = []
    for home in args.campaigns:
        if home != args.campaigns[0]:
            cells, means, _ = measured(home)
        for cell in cells:
            if home == args.campaigns[0] and cell.name in names:
                continue
            found = predict_cell(cell.name, cell.config, cell.traffic, calibration.fit, draws=0)
            errors = {key: error_of(found.metrics[key], means[cell.name][key]) for key in LIMITS}
            rows.append({"campaign": home.name, "cell": cell.name, "error": errors})
    width = max(len(row["cell"]) for row in rows)
    print("\n" + " " * width + "  " + " ".join(f"{key.removesuffix('_ms'):>13.13}" for key in LIMITS))
    for row in rows:
        print(f"{row['cell']:<{width}}  " + " ".join(f"{row['error'][key]:>+13.1%}" for key in LIMITS))
    print(f"\n{'':24} {'limit':>6} {'mean |error|':>13} {'largest':>9} {'within':>9} {'runs differ by':>15}")
    for key, limit in LIMITS.items():
        errors = np.abs([row["error"][key] for row in rows])
        within = f"{int((errors <= limit).sum())} of {len(errors)}"
        print(f"{key:24} {limit:>6.0%} {errors.mean():>13.1%} {errors.max():>9.1%} {within:>9} {spreads[key]:>15.1%}")
    if args.json:
        args.json.write_text(
            json.dumps({"calibrated_on": names, "source": calibration.source, "cells": rows}, indent=1)
        )


if __name__ == "__main__":
    main()
