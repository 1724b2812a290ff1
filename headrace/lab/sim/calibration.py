"""What was learned about a deployment, as a file: coefficients, how sure they are, and what they rest on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from headrace.errors import ConfigError
from headrace.lab.files import write_where_asked
from headrace.lab.sim.cost import StepCost
from headrace.lab.sim.fit import Fit
from headrace.lab.sim.server import FrontEnd

SCHEMA = "headrace.calibration/1"

# Above this some coefficient could be anything: predictions inside the range stay good, the coefficient is no fact.
ILL_CONDITIONED = 100.0


@dataclass(frozen=True, slots=True)
class Calibration:
    """A fit with its provenance.

    source   "step log", "records" or "result blocks"
    runs     the runs that it rests on
    seen     feature -> (least, largest) in the steps of those runs: outside, a prediction is an extrapolation
    settings what all of the runs' servers stated alike, for what a plan leaves open (num_blocks, block_size, ...)
    notes    sentences that a reader must know
    """

    fit: Fit
    source: str
    runs: tuple[str, ...]
    seen: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


def save_calibration(calibration: Calibration, path: Path) -> None:
    """Write it as JSON.  Raises LaunchError or ConfigError when the file cannot be written."""
    fit = calibration.fit
    data = {
        "schema": SCHEMA,
        "source": calibration.source,
        "runs": list(calibration.runs),
        "cost": fit.cost.to_json(),
        "front": asdict(fit.front),
        "terms": list(fit.terms),
        "covariance": fit.covariance.tolist(),
        "condition": fit.condition,
        "residuals": [{"run": run, "metric": metric, "error": error} for (run, metric), error in fit.residuals.items()],
        "seen": {name: list(bounds) for name, bounds in calibration.seen.items()},
        "settings": dict(calibration.settings),
        "notes": list(calibration.notes),
    }
    write_where_asked(path, json.dumps(data, indent=1) + "\n", what=f"--out {path}")


def load_calibration(path: Path) -> Calibration:
    """Read one back.  Raises ConfigError naming the file."""
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if data.get("schema") != SCHEMA:
            raise ConfigError(f"{path} is not a calibration (schema {data.get('schema')!r}, not {SCHEMA})")
        terms = tuple(data["terms"])
        fit = Fit(
            StepCost.from_json(data["cost"]),
            FrontEnd(**data["front"]),
            terms,
            np.array(data["covariance"], float).reshape(len(terms), len(terms)),
            {(row["run"], row["metric"]): float(row["error"]) for row in data["residuals"]},
            float(data["condition"]),
        )
        seen = {name: (float(low), float(high)) for name, (low, high) in data["seen"].items()}
        return Calibration(fit, data["source"], tuple(data["runs"]), seen, tuple(data["notes"]), data["settings"])
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path} is not a calibration that can be read: {type(error).__name__} {error}") from None
