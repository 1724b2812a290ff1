"""Calibration from an engine's step log: every step says what it computed and how long it took, so nothing is guessed.

A step lasts until the next one begins while there is work, so what the host does between two steps is in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from headrace.errors import ConfigError
from headrace.lab.sim.calibration import Calibration
from headrace.lab.sim.cost import StepCost, StepShape
from headrace.lab.sim.fit import Fit
from headrace.lab.sim.server import FrontEnd

Floats = NDArray[np.float64]

SCHEMA = "headrace.step-log/1"
# A gap longer than this after a step was idleness, even where the log says that somebody waited.
_IDLE_S = 0.05
# Knots of the curve of T; a piece without steps borrows from its neighbours.
_KNOTS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0)
_LEAST_STEPS = 50
# Constants and slopes tried beside the curve; one is kept only when it predicts the steps that it has not seen better.
_LINEAR = ("kv_token_s", "pair_s", "sequence_s", "row_s")
_KEPT_GAIN = 0.005
# A step that took more than so many times what is usual is a stop of the machine: the rest of it belongs to no step.
_HICCUP = 4.0


@dataclass(frozen=True, slots=True)
class LoggedSteps:
    """Steps of a log: their shapes, their seconds, and the settings of the engine that wrote it."""

    shapes: tuple[StepShape, ...]
    seconds: Floats
    settings: Mapping[str, Any]


def is_step_log(path: Path) -> bool:
    """Whether a file begins as one."""
    try:
        with path.open("rb") as file:
            return SCHEMA.encode() in file.readline(4096)
    except OSError:
        return False


def read_step_log(path: Path) -> LoggedSteps:
    """Raises ConfigError for a file that is no step log, or one of a version that lacks what a step read."""
    shapes, times, settings = [], [], {}
    rows = list(_rows(path))
    for index, row in enumerate(rows):
        if row.get("schema") == SCHEMA:
            settings = {
                key: value for key, value in row.items() if key not in ("schema", "monotonic_s", "unix_s", "pid")
            }
        if "step" not in row:
            continue
        if "kv_tokens" not in row:
            raise ConfigError(f"{path} was written by a headrace that did not note kv_tokens; write it anew")
        tokens = row["prefill_tokens"] + row["decode_tokens"]
        if not tokens:
            continue
        decodes = row["decode_tokens"]
        shapes.append(
            StepShape(
                tokens,
                row["prefill_tokens"],
                decodes,
                row["kv_tokens"],
                row["pairs"],
                row["rows"],
                row["sequences"],
            )
        )
        times.append(_lasted(row, rows[index + 1] if index + 1 < len(rows) else {}))
    if len(shapes) < _LEAST_STEPS:
        raise ConfigError(f"{path} holds {len(shapes)} steps; at least {_LEAST_STEPS} are needed to learn from")
    settings["num_blocks"] = settings.pop("num_kv_blocks", None)
    return LoggedSteps(
        tuple(shapes), np.array(times), {key: value for key, value in settings.items() if value is not None}
    )


def merged(logs: Sequence[LoggedSteps]) -> LoggedSteps:
    """Several logs as one; of their settings, what all state alike."""
    settings = {
        key: value for key, value in logs[0].settings.items() if all(log.settings.get(key) == value for log in logs)
    }
    shapes = tuple(shape for log in logs for shape in log.shapes)
    return LoggedSteps(shapes, np.concatenate([log.seconds for log in logs]), settings)


def calibrate_on_steps(log: LoggedSteps, name: str) -> Calibration:
    """Fit the step's cost to a log.

    The curve of T is piecewise linear; a further term is kept only when it lowers the error on the half of the log
    that the fit has not seen (halves of whole stretches: neighbouring steps are alike).
    """
    shapes, seconds = np.array(log.shapes, float), log.seconds
    stretch = (np.arange(len(seconds)) // max(1, len(seconds) // 20)) % 2 == 0
    kept: list[str] = []
    best = _held_out(shapes, seconds, stretch, kept)
    for term in _LINEAR:
        error = _held_out(shapes, seconds, stretch, [*kept, term])
        if error < best - _KEPT_GAIN:
            kept, best = [*kept, term], error
    cost = _fit(shapes, seconds, kept)
    fit = Fit(cost, FrontEnd(), (), np.zeros((0, 0)), {}, 1.0)
    seen = {key: (float(shapes[:, i].min()), float(shapes[:, i].max())) for i, key in ((0, "tokens"), (3, "kv_tokens"))}
    total = float(np.array([cost.seconds(shape) for shape in log.shapes]).sum() / seconds.sum() - 1)
    notes = (
        f"{len(seconds)} steps; half of them predict the other half's times to {best:.1%} (mean error)",
        f"all steps together are predicted to {total:+.1%}",
    )
    return Calibration(fit, "step log", (name,), seen, notes, log.settings)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as a step log: {error}") from None
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue  # the last line of a server that was killed
        if isinstance(row, dict):
            yield row


def _lasted(row: Mapping[str, Any], after: Mapping[str, Any]) -> float:
    own = float(row["end_s"] - row["start_s"])
    if (
        "start_s" not in after
        or after.get("step") != row["step"] + 1
        or row["running"] + row["waiting"] == row["finished"]
    ):
        return own
    gap = float(after["start_s"] - row["end_s"])
    return own + gap if gap < _IDLE_S else own


def _held_out(shapes: Floats, seconds: Floats, half: NDArray[np.bool_], terms: Sequence[str]) -> float:
    """Mean relative error on each half by the fit to the other."""
    errors = []
    for seen in (half, ~half):
        cost = _fit(shapes[seen], seconds[seen], terms)
        predicted = np.array([cost.seconds(StepShape(*map(int, row))) for row in shapes[~seen]])
        errors.append(float(np.abs(predicted / seconds[~seen] - 1).mean()))
    return sum(errors) / 2


def _fit(shapes: Floats, seconds: Floats, terms: Sequence[str]) -> StepCost:
    """Non-negative least squares of errors relative to the prediction, with large ones counted less (Huber's weights).

    Relative to the measured seconds the fit would be low: a step that happens to be short would weigh more.  Slow steps
    are more and farther off than fast ones, and what counts less in the fit still takes its time, so at the end the
    level is set to that of all steps together.
    """
    tokens = shapes[:, 0]
    knots = [k for k in _KNOTS if k < tokens.max()] or [1.0]
    knots.append(max(float(tokens.max()), knots[-1] + 1.0))
    # The curve as a constant and increments, so that it never falls with more tokens.
    hinges = [np.ones(len(tokens))]
    for low, high in pairwise(knots):
        hinges.append(np.clip((tokens - low) / (high - low), 0.0, 1.0))
    columns = {"kv_token_s": 3, "pair_s": 4, "row_s": 5, "sequence_s": 6}
    design = np.stack([*hinges, *(shapes[:, columns[term]] for term in terms)], axis=1)
    scale = np.maximum(design.max(axis=0), 1e-300)
    weight, unit = np.ones(len(seconds)), seconds
    for _ in range(8):
        solution, _ = nnls(design / scale / unit[:, None] * weight[:, None], weight * seconds / unit)
        unit = np.maximum(design @ (solution / scale), 1e-9)
        left = seconds / unit - 1
        typical = max(1.5 * float(np.median(np.abs(left))), 1e-4)
        weight = np.sqrt(np.minimum(1.0, 1.5 * typical / np.maximum(np.abs(left), 1e-12)))
    level = float(np.minimum(seconds, _HICCUP * unit).sum() / unit.sum())
    solution = solution / scale * level
    heights = np.cumsum(solution[: len(knots)])
    named = dict(zip(terms, map(float, solution[len(knots) :]), strict=True))
    curve = tuple(zip(knots, map(float, heights), strict=True))
    return StepCost(knots=curve, **named)
