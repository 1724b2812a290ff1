"""`headrace tune` against an exhaustive sweep of a real engine: the tuner's runs are taken from a measured campaign.

    headrace run PLAN --out runs/sweep                  (all cells, several repeats)
    python benchmarks/tune_replay.py runs/sweep [--maximize METRIC] [--goodput ttft:2000 tpot:100] [--goal METRIC:BOUND]

The search sees one run at a time, as it would live: the next repeat of the cell that it asks for.  It may take a
quarter of the sweep's runs, and with `--cells` a quarter of its cells.  The truth is the mean over all repeats of a
cell; its standard error is printed, for a loss below it says nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from headrace.lab.records.results import study_from_json
from headrace.lab.records.store import read_run
from headrace.lab.sim.campaigns import read_measured
from headrace.lab.sim.slo import parse_slo
from headrace.lab.tuner.campaign import seen_of
from headrace.lab.tuner.objective import GOODPUT, Objective
from headrace.lab.tuner.search import search
from headrace.lab.tuner.world import Seen, SimulatedCells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--maximize", default="output_throughput")
    parser.add_argument("--goodput", nargs="+")
    parser.add_argument("--goal", nargs="+", default=[], metavar="METRIC:BOUND")
    parser.add_argument("--cells", action="store_true", help="allow a quarter of the cells, not of the runs")
    args = parser.parse_args()
    study = study_from_json((args.sweep / "study.json").read_text(encoding="utf-8"), source=str(args.sweep))
    measured = read_measured(study, args.sweep)
    slo = parse_slo(args.goodput, 0.99) if args.goodput else None
    bounds = {name: float(bound) for name, _, bound in (goal.partition(":") for goal in args.goal)}
    objective = Objective(GOODPUT if slo else args.maximize, bounds, slo=slo)
    runs = [
        [seen_of(run.metrics, read_run(run.records)[1], run.traffic, objective.slo) for run in each.runs]
        for each in measured
    ]
    scores = [np.array([objective.score(seen.metrics) for seen in several]) for several in runs]
    # A cell that breaks a bound on average is none to choose, whatever a lucky run of it says.
    means = np.array([several.mean() if (several > 0).mean() > 0.5 else 0.0 for several in scores])
    errors = np.array([several.std(ddof=1) / len(several) ** 0.5 if len(several) > 1 else np.nan for several in scores])
    total = sum(len(several) for several in runs)
    taken: dict[int, int] = {}

    def measure(cell: int) -> Seen:
        number = taken.get(cell, 0)
        taken[cell] = number + 1
        return runs[cell][number % len(runs[cell])]

    names = ("max_num_batched_tokens", "max_num_seqs", "policy")
    found = search(
        [{key: each.settings[key] for key in names if key in each.settings} for each in measured],
        measure,
        lambda seen: (objective.value(seen.metrics), objective.excess(seen.metrics)),
        SimulatedCells([each.config for each in measured], None, objective),
        most=max(1, (len(measured) if args.cells else total) // 4),
    )
    best = int(np.argmax(means))
    for index in np.argsort(-means):
        mark = " <- chosen" if index == found.best else ""
        print(f"{measured[index].name:45} {means[index]:10.2f} +- {errors[index]:.2f}{mark}")
    loss = 1.0 if found.best is None else 1 - means[found.best] / means[best]
    share = float(np.hypot(errors[best], errors[found.best])) / means[best] if found.best is not None else 0.0
    print(f"\n{objective}: {len(found.steps)} of {total} runs over {len(measured)} cells")
    print(f"loss against the sweep's best {loss:.1%} (standard error of the comparison {share:.1%})")


if __name__ == "__main__":
    main()
