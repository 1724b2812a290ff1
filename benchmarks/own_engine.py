"""headrace predicted by its own simulator: calibrated on four measured cells, all others predicted and compared.

    headrace run PLAN --out runs/a            (and further campaigns of the same model: other rates, other policies)
    python benchmarks/own_engine.py runs/a [runs/b ...] [--on CELL ...] [--choices 40] [--records-only]

A cell's name is its campaign's directory and its own, `a/64`.  `--on` names those that calibrate; without it
`--choices` sets of four are drawn, with one of every campaign at least, and the median over the sets is printed.  Each
other cell is predicted with its own arrivals and lengths and compared with the mean of its runs; how much the runs of
one cell differ is printed beside it, for no prediction can be nearer than that.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from headrace.lab.records.results import study_from_json
from headrace.lab.sim.campaigns import Measured, calibrate_on_campaign, read_measured
from headrace.lab.sim.predict import error_of, predict_cell
from headrace.lab.sim.rows import measured_means

WORDS = ("mean", "median", "p99")
LIMITS = {
    "duration": 0.05,
    "total_token_throughput": 0.05,
    **{
        f"{word}_{name}_ms": 0.12 if word == "p99" else 0.05
        for name in ("ttft", "tpot", "itl", "e2el")
        for word in WORDS
    },
}
CALIBRATING = 4


class Cells:
    """Measured cells of several campaigns, their mean metrics, and how much the runs of one cell differ."""

    def __init__(self, homes: Sequence[Path], records_only: bool) -> None:
        self.cells: list[Measured] = []
        self.means: dict[str, dict[str, float]] = {}
        relative: dict[str, list[float]] = {key: [] for key in LIMITS}
        for home in homes:
            study = study_from_json((home / "study.json").read_text(encoding="utf-8"), source=str(home))
            for cell in study.cells:
                self.means[f"{home.name}/{cell.name}"] = measured_means(cell)
                for key, found in relative.items():
                    values = [run.metrics[key] for run in cell.runs if key in run.metrics]
                    if len(values) > 1:
                        found.append(float(np.std(values, ddof=1) / np.mean(values)))
            for each in read_measured(study, home):
                runs = each.runs
                if records_only:
                    runs = tuple(replace(run, step_log=Path("none")) for run in runs)
                self.cells.append(replace(each, name=f"{home.name}/{each.name}", runs=runs))
        self.spread = {key: float(np.median(found)) if found else float("nan") for key, found in relative.items()}

    def errors(self, names: Sequence[str]) -> dict[str, list[float]]:
        """Calibrated on `names`: of every other cell the errors of the metrics in LIMITS."""
        calibration, _ = calibrate_on_campaign(self.cells, names)
        found = {}
        for cell in self.cells:
            if cell.name not in names:
                predicted = predict_cell(cell.name, cell.config, cell.traffic, calibration.fit, draws=0).metrics
                found[cell.name] = [error_of(predicted[key], self.means[cell.name][key]) for key in LIMITS]
        return found

    def choices(self, count: int, seed: int = 1) -> list[list[str]]:
        """Random sets of cells to calibrate on, with one of every campaign at least."""
        rng = random.Random(seed)
        groups: dict[str, list[str]] = {}
        for cell in self.cells:
            groups.setdefault(cell.name.partition("/")[0], []).append(cell.name)
        drawn = []
        for _ in range(count):
            chosen = [rng.choice(names) for names in groups.values()]
            others = [cell.name for cell in self.cells if cell.name not in chosen]
            drawn.append(chosen + rng.sample(others, max(0, CALIBRATING - len(chosen))))
        return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("campaigns", nargs="+", type=Path)
    parser.add_argument("--on", nargs="+", help="cells that calibrate, as CAMPAIGN/CELL")
    parser.add_argument("--choices", type=int, default=40)
    parser.add_argument("--records-only", action="store_true", help="learn from the client's records, not step logs")
    args = parser.parse_args()
    cells = Cells(args.campaigns, args.records_only)
    if unknown := set(args.on or ()) - {cell.name for cell in cells.cells}:
        parser.error(f"there is no cell {sorted(unknown)[0]}; there are {', '.join(cell.name for cell in cells.cells)}")
    sets = [args.on] if args.on else cells.choices(args.choices)
    found = [cells.errors(names) for names in sets]
    if args.on:
        width = max(map(len, found[0]))
        print(" " * width + " ".join(f"{key.removesuffix('_ms'):>13.13}" for key in LIMITS))
        for name, errors in found[0].items():
            print(f"{name:<{width}}" + " ".join(f"{error:>+13.1%}" for error in errors))
    each = np.array([np.abs(list(errors.values())).mean(axis=0) for errors in found])
    print(f"\n{len(sets)} sets of {len(sets[0])} calibrating cells, {len(found[0])} others; mean absolute error")
    print(f"{'':24} {'limit':>6} {'median':>8} {'10 % to 90 % of the sets':>26} {'runs of a cell differ by':>26}")
    for index, (key, limit) in enumerate(LIMITS.items()):
        low, middle, high = np.percentile(each[:, index], [10, 50, 90])
        print(f"{key:24} {limit:>6.0%} {middle:>8.1%} {f'{low:.1%} to {high:.1%}':>26} {cells.spread[key]:>26.1%}")


if __name__ == "__main__":
    main()
