"""Predictions as rows: what `headrace simulate --json` prints, and what a report shows beside measured figures."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from headrace.lab.records.results import Cell, Study
from headrace.lab.sim.predict import Prediction, Verdict, error_of

Row = dict[str, Any]


def compared_rows(study: Study, predictions: Mapping[str, Prediction], calibrated: Collection[str]) -> list[Row]:
    """One row a cell: `cell`, `predicted`, `published` (the mean over its runs), `error`, `calibration`, `interval`.

    Metrics by vLLM's keys; error is predicted / published - 1; `refused` are the requests predicted to be refused and
    those that were.
    """
    rows = []
    for cell in study.cells:
        prediction = predictions.get(cell.name)
        if prediction is None:
            continue
        published = measured_means(cell)
        row = prediction_row(prediction)
        row["published"] = published
        row["error"] = {
            key: error_of(value, published[key]) for key, value in prediction.metrics.items() if published.get(key)
        }
        row["calibration"] = cell.name in calibrated
        asked, completed = cell.settings.get("num_prompts"), published.get("completed")
        if isinstance(asked, int) and completed is not None:
            row["refused"] = {"predicted": prediction.asked - prediction.served, "published": asked - completed}
            row["truncated"] = {"predicted": prediction.served < prediction.asked, "published": completed < asked}
        rows.append(row)
    return rows


def prediction_row(prediction: Prediction, verdicts: Sequence[Verdict] = ()) -> Row:
    """A prediction by itself."""
    row: Row = {
        "cell": prediction.name,
        "predicted": dict(prediction.metrics),
        "interval": {key: list(bounds) for key, bounds in prediction.intervals.items()},
        "asked": prediction.asked,
        "served": prediction.served,
        "preemptions": prediction.preemptions,
        "caveats": list(prediction.caveats),
    }
    if verdicts:
        row["goals"] = [{"metric": v.metric, "bound": v.bound, "met": v.met, "why": v.why} for v in verdicts]
    return row


def measured_means(cell: Cell) -> dict[str, float]:
    """Mean over the cell's runs of each metric that all of them have."""
    if not cell.runs:
        return {}
    keys = [key for key in cell.runs[0].metrics if all(key in run.metrics for run in cell.runs)]
    return {key: sum(run.metrics[key] for run in cell.runs) / len(cell.runs) for key in keys}
