"""The published campaign's twelve rounds: figures kept as a table of our own, for reports, findings and examples."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from headrace.errors import ConfigError
from headrace.lab.records.foreign import study_from_runs
from headrace.lab.records.results import Json, RunResult, Study

_PACKAGED = "published_campaign.toml"
_REQUIRED = ("study", "columns", "settings", "round")


def load_published(path: Path | None = None) -> Study:
    """The published campaign as a study of kind "imported"; `path` names another file of the same layout.

    Raises ConfigError naming the file when it is missing or damaged.
    """
    label = str(path) if path is not None else _PACKAGED
    try:
        text = (
            path.read_text(encoding="utf-8")
            if path is not None
            else resources.files("headrace.lab.records").joinpath(_PACKAGED).read_text(encoding="utf-8")
        )
        table = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{label} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{label} is not TOML: {error}") from None
    missing = [key for key in _REQUIRED if key not in table]
    if missing:
        raise ConfigError(f"{label} is not a table of rounds: no {', '.join(missing)}")
    try:
        study = table["study"]
        runs = [_run(row, table["columns"], table["settings"], study["source"]) for row in table["round"]]
        return study_from_runs(runs, study["name"], study["title"], facts=study["facts"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{label} is a damaged table of rounds: {type(error).__name__} {error}") from None


def _run(row: Mapping[str, Json], columns: list[str], common: Mapping[str, Json], source: str) -> RunResult:
    settings = {**common, **row["settings"]}
    metrics = dict(zip(columns, row["figures"], strict=True))
    return RunResult(f"{source}, round {row['number']}", settings, metrics, tuple(row.get("warnings", ())))
