"""headrace's own files, which people hand to `headrace import` too: a run, a campaign, a table of published rounds."""

from __future__ import annotations

import json
import os
import tomllib
from dataclasses import replace
from pathlib import Path

from headrace.errors import ConfigError
from headrace.lab.records.results import RunResult
from headrace.lab.records.store import INTERRUPTED, MANIFEST, REQUESTS

_CAMPAIGN, _STUDY = "campaign.json", "study.json"


def is_run(directory: Path) -> bool:
    """Whether `headrace bench --out` wrote the directory (finished or not)."""
    return (directory / REQUESTS).is_file() and any(
        (directory / name).is_file() and b'"manifest_sha256"' in (directory / name).read_bytes()
        for name in (MANIFEST, INTERRUPTED)
    )


def is_campaign(directory: Path) -> bool:
    """Whether `headrace run` wrote the directory, or any study but an imported one is in it."""
    return (directory / _CAMPAIGN).is_file() or study_kind(directory / _STUDY) not in (None, "imported")


def study_kind(path: Path) -> str | None:
    """The kind of the study in a file, None when there is none."""
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    kind = data.get("kind") if isinstance(data, dict) and "cells" in data else None
    return kind if isinstance(kind, str) else None


def read_directory(directory: Path, source: str) -> tuple[RunResult, ...]:
    """The run in a directory, its metrics computed anew.  Raises ConfigError that says what to do with any other."""
    from headrace.lab.metrics.result import run_result_from_directory

    if not os.access(directory, os.R_OK | os.X_OK):
        raise ConfigError("a directory that cannot be read: permission denied")
    if is_campaign(directory):
        raise ConfigError(f"a campaign or study of headrace; `headrace report {directory}` explains it")
    try:
        return (replace(run_result_from_directory(directory), source=source),)
    except ConfigError as error:
        raise ConfigError(str(error).removeprefix(f"{directory} ")) from None


def read_toml(path: Path, text: str) -> tuple[RunResult, ...] | None:
    """The rounds of a table of published rounds; None when the text is something else.

    Raises ConfigError for a damaged table and for a plan.
    """
    from headrace.lab.records.published import load_published  # which reads its own table with this package

    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return None
    if "round" in table:
        return tuple(run for cell in load_published(path).cells for run in cell.runs)
    if "sweep" in table or "workload" in table:
        raise ConfigError(f"a plan, not a result; `headrace run {path}` measures it")
    return None
