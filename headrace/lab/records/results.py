"""Runs, cells and studies: the tables that measured, imported and simulated results share.

Everything downstream (findings, report) sees only these types, so a vLLM console log, a result JSON and a run of
our own client are compared by the same code.  Metric names are vLLM's JSON keys (milliseconds in `*_ms`, seconds
in `duration`); a metric that the input does not have is absent, never zero.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from headrace.errors import ConfigError, InvariantError

SCHEMA_VERSION = 1

Json = Any


class CellStatus(StrEnum):
    """What became of a cell.  An illegal or failed cell is a result with a reason, never a gap."""

    OK = "ok"
    ILLEGAL = "illegal"  # forbidden by a rule: not launched, or launched and refused (see `Cell.refused`)
    SUBSTITUTED = "substituted"  # made legal by changing other flags too; see `substituted`
    DEGRADED = "degraded"  # ran, but served less than the whole workload
    FAILED = "failed"  # launched or measured, and went wrong
    PENDING = "pending"  # not reached yet (an interrupted campaign)


class Level(StrEnum):
    """How far a run may be believed, by the client's own account."""

    VALID = "VALID"
    WARN = "WARN"
    INVALID = "INVALID"  # its figures describe the client or a fault, so it is compared with nothing


@dataclass(frozen=True, slots=True)
class RunVerdict:
    """The verdict of the client that measured a run; `reasons` are sentences, the gravest first."""

    level: Level
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RunResult:
    """One measured repeat.

    source    where it comes from: a file (with `#n` for the n-th block in it) or a run directory
    settings  what is known of the server and client configuration, by these keys where they apply:
              model, policy (v1 | v1-whole | v0 | v0-chunked), enable_chunked_prefill (bool),
              max_num_batched_tokens, max_num_seqs, max_model_len (int), num_prompts (int, as asked),
              request_rate (float or "inf"), max_concurrency, dataset, backend, profile (bool: a profiler was
              on), repeat (int), version.  An unknown setting is absent.
    metrics   vLLM's JSON keys -> number
    warnings  sentences about this run that a reader must know
    verdict   may it be compared; None where nobody judged it (the results of other tools)
    """

    source: str
    settings: Mapping[str, Json]
    metrics: Mapping[str, float]
    warnings: tuple[str, ...] = ()
    verdict: RunVerdict | None = None

    @property
    def invalid(self) -> bool:
        return self.verdict is not None and self.verdict.level is Level.INVALID


@dataclass(frozen=True, slots=True)
class Cell:
    """One combination of settings: its runs, or the reason why it has none.

    settings     the effective configuration (keys as in RunResult.settings)
    substituted  flag -> [wanted, used], for each setting that was changed to make the cell legal
    rule, reason the rule id (R1, R2, ...) and one sentence, for every status but OK
    refused      an ILLEGAL cell that was launched: its server named the rule, and ended
    """

    name: str
    settings: Mapping[str, Json]
    status: CellStatus = CellStatus.OK
    runs: tuple[RunResult, ...] = ()
    rule: str | None = None
    reason: str | None = None
    substituted: Mapping[str, tuple[Json, Json]] = field(default_factory=dict)
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Study:
    """A set of cells that belong together: a campaign of ours, or an imported one.

    kind    "measured", "imported" or "simulated"
    facts   what is true of every run and not in the settings: where the figures come from, the machine, ...
    simulation   what the simulator, calibrated on some of the cells, says of all of them (see lab/sim/campaigns.py);
                 `reason` alone where it could not be asked; empty where it was not
    """

    name: str
    title: str
    kind: str
    cells: tuple[Cell, ...]
    facts: Mapping[str, Json] = field(default_factory=dict)
    simulation: Mapping[str, Json] = field(default_factory=dict)


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{what} must be an object")
    return value


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{what} must be text")
    return value


def _metrics(value: Any) -> dict[str, float]:
    for key, item in _object(value, "metrics").items():
        if isinstance(item, bool) or not isinstance(item, int | float):
            raise TypeError(f"the metric {key} must be a number")
    return dict(value)


def run_from_json(data: Any) -> RunResult:
    """A run back from what `asdict` made of it.  Raises KeyError, TypeError or ValueError for anything else."""
    verdict = _object(data, "a run").get("verdict")
    return RunResult(
        _text(data["source"], "a run's source"),
        _object(data["settings"], "settings"),
        _metrics(data["metrics"]),
        tuple(_text(warning, "a warning") for warning in data["warnings"]),
        None if verdict is None else RunVerdict(Level(verdict["level"]), tuple(map(str, verdict["reasons"]))),
    )


def study_to_json(study: Study) -> str:
    """The study as JSON text (indented, keys in declaration order), read back by `study_from_json`.

    Raises InvariantError for a figure that is not finite: JSON has none, and whoever made the study let it through.
    """
    data = {"schema_version": SCHEMA_VERSION, **asdict(study)}
    try:
        return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError as error:
        raise InvariantError(f"the study {study.name} holds what JSON cannot: {error}") from None


def _simulation(value: Any) -> dict[str, Json]:
    """Checked down to its figures: whatever reads a study may rely on them."""
    found = _object(value, "the simulation")
    for name in found.get("calibrated_on", ()):
        _text(name, "a cell's name")
    for row in found.get("cells", ()):
        _text(row["cell"], "a cell's name")
        for figures in _object(row["metrics"], "the simulated metrics").values():
            _metrics({key: figures[key] for key in ("measured", "simulated")})
            low, high = figures["interval"]
            _metrics({"low": low, "high": high})
    return found


def study_from_json(text: str, *, source: str) -> Study:
    """Read a study back.  Raises ConfigError naming `source` when the text is not a study of this version."""
    try:
        # A half of a surrogate pair is valid JSON, and no text that could be written to a report.
        data = json.loads(json.dumps(json.loads(text), ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError) as error:  # not JSON, a number of thousands of digits, a nesting without end
        raise ConfigError(f"{source} is not JSON that can be read: {error}") from None
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise ConfigError(f"{source} is not a headrace study of schema version {SCHEMA_VERSION} (found {version!r})")
    try:
        cells = tuple(
            Cell(
                name=_text(cell["name"], "a cell's name"),
                settings=_object(cell["settings"], "settings"),
                status=CellStatus(cell["status"]),
                runs=tuple(run_from_json(run) for run in cell["runs"]),
                rule=None if cell["rule"] is None else _text(cell["rule"], "a rule"),
                reason=None if cell["reason"] is None else _text(cell["reason"], "a reason"),
                substituted={key: (pair[0], pair[1]) for key, pair in cell["substituted"].items()},
                refused=cell.get("refused", False) is True,
            )
            for cell in data["cells"]
        )
        return Study(
            _text(data["name"], "name"),
            _text(data["title"], "title"),
            _text(data["kind"], "kind"),
            cells,
            _object(data["facts"], "facts"),
            _simulation(data.get("simulation", {})),
        )
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ConfigError(f"{source} is a damaged study: {type(error).__name__} {error}") from None
