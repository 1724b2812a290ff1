"""What the simulation of a campaign says: whether scheduling and the cost of a step explain what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from headrace.lab.findings.finding import Finding
from headrace.lab.findings.words import METRIC_WORDS, listed, names, percent, plural, quantity
from headrace.lab.records.results import Study

Row = Mapping[str, Any]

# What one would choose a setting by; the tails of ITL and TPOT rest on single requests and stalls.
_JUDGED = ("duration", "mean_ttft_ms", "median_tpot_ms", "p99_ttft_ms")
# A miss that no repeat of a run would bring about by itself.
_ODD = 0.15


def simulated(study: Study) -> Iterator[Finding]:
    """One finding on how well the campaign is explained, and one on each cell that is not."""
    told = study.simulation
    rows: list[Row] = [row for row in told.get("cells", ()) if row["metrics"]]
    predicted = [row for row in rows if not row["calibration"]]
    if not predicted:
        return
    yield _agreement(told, predicted)
    yield from _odd(predicted)


def _agreement(told: Mapping[str, Any], predicted: list[Row]) -> Finding:
    errors = {
        key: sum(found) / len(found)
        for key in _JUDGED
        if (found := [abs(_error(row, key)) for row in predicted if key in row["metrics"]])
    }
    inside = [
        row["metrics"][key]["interval"][0] <= row["metrics"][key]["measured"] <= row["metrics"][key]["interval"][1]
        for row in predicted
        for key in _JUDGED
        if key in row["metrics"]
    ]
    words = listed([f"{METRIC_WORDS[key]} to {percent(error)}" for key, error in errors.items()])
    basis = (
        "calibrated on half of the requests" if told.get("halves") else f"calibrated on {names(told['calibrated_on'])}"
    )
    worst = max(errors.values())
    what = plural(len(predicted), "cell" if told.get("halves") else "other cell")
    meaning = (
        "so scheduling and the cost of a step explain this campaign, and cells that were not measured can be predicted"
        if worst <= 0.05
        else "so something beside scheduling and the cost of a step is at work"
        if worst > _ODD
        else "so predictions of other cells are as good as that, not better"
    )
    return Finding(
        "simulation.agreement",
        "simulation",
        f"The simulator, {basis}, predicts {what}: {words} on average; {meaning}.",
        {"mean_error": errors, "inside_interval": sum(inside) / len(inside), "cost_s": dict(told.get("cost", {}))},
        tuple(row["cell"] for row in predicted),
        tuple(told.get("notes", ())),
    )


def _odd(predicted: list[Row]) -> Iterator[Finding]:
    """The cell that the model misses most, with what such a miss means."""
    misses = [(abs(_error(row, key)), row, key) for row in predicted for key in _JUDGED if key in row["metrics"]]
    size, row, key = max(misses, key=lambda miss: miss[0])
    if size <= _ODD:
        return
    figures = row["metrics"][key]
    slower = figures["measured"] > figures["simulated"]
    why = (
        "its server or its client lost time outside of the steps, or another process took some"
        if slower
        else "its steps were cheaper than those that the cost was learned from"
    )
    yield Finding(
        "simulation.odd",
        "simulation",
        f"{row['cell']} is not explained by the simulation: its {METRIC_WORDS[key]} was"
        f" {quantity(key, figures['measured'])}, simulated {quantity(key, figures['simulated'])}; {why}.",
        {"measured": figures["measured"], "simulated": figures["simulated"], "metric": key},
        (row["cell"],),
        tuple(row.get("caveats", ())),
    )


def _error(row: Row, key: str) -> float:
    figures = row["metrics"][key]
    return float(figures["simulated"] / figures["measured"] - 1) if figures["measured"] else 0.0
