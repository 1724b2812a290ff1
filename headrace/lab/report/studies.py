"""The studies of a report: its own, and those beside it, by name or as in the report that is about to be replaced."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from headrace.errors import ConfigError
from headrace.lab.records.results import Study, study_from_json

TWIN_KIND = "headrace report"
PUBLISHED, NONE = "published", "none"


@dataclass(frozen=True, slots=True)
class Beside:
    """Studies to show beside one, and their names: paths, or `published`."""

    names: tuple[str, ...]
    studies: tuple[Study, ...]


def load_study(path: Path) -> Study:
    """The study in `path`: a study.json, or a directory with one.  Raises ConfigError with what was expected."""
    file = path / "study.json" if path.is_dir() else path
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        where = f"{path} has no study.json" if path.is_dir() else f"{path} does not exist"
        raise ConfigError(
            f"{where}; give a directory that `headrace run` or `headrace import --out` has written"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from None
    if f'"kind": "{TWIN_KIND}"' in text[:200]:
        raise ConfigError(f"{file} is the JSON twin of a report; give the study.json beside it, or the directory")
    return study_from_json(text, source=str(file))


def studies_beside(names: Sequence[str] | None, directory: Path, out: Path | None = None) -> Beside:
    """The studies by name; without names, those of the last report of `directory` (or of the page `out`).

    `none` stands for no study, and so drops the last choice.  Raises ConfigError for what is not a study.
    """
    if names is None:
        return _as_last_time(directory, out)
    if list(names) == [NONE] and not Path(NONE).exists():
        return Beside((), ())
    return Beside(tuple(names), tuple(_load(name) for name in names))


def remembered(names: Sequence[str], directory: Path) -> list[str]:
    """The names as the report keeps them: paths relative to `directory`, so that both may be moved together."""
    return [name if _is_published(name) else _relative(Path(name), directory) for name in names]


def _relative(path: Path, directory: Path) -> str:
    found = Path(os.path.relpath(path.resolve(), directory.resolve())).as_posix()
    return found if found.startswith("..") else f"./{found}"  # never to be taken for a word


def _as_last_time(directory: Path, out: Path | None) -> Beside:
    twins = [directory / "report.json"] if out is None else [out.with_suffix(".json"), directory / "report.json"]
    twin = next((path for path in twins if path.is_file()), None)
    kept = _kept(twin) if twin is not None else []
    names = [name if name == PUBLISHED else str(directory / name) for name in kept]
    try:
        return Beside(tuple(names), tuple(_load(name) for name in names))
    except ConfigError as error:
        raise ConfigError(f"{error} (it stood beside the last report; `--beside none` drops it)") from None


def _kept(twin: Path) -> list[str]:
    """The choice in a report's twin; none in one that is damaged, foreign or older: it is about to be replaced."""
    try:
        data = json.loads(twin.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    kept = data.get("beside") if isinstance(data, dict) else None
    return [name for name in kept if isinstance(name, str)] if isinstance(kept, list) else []


def _is_published(name: str) -> bool:
    return name == PUBLISHED and not Path(name).exists()


def _load(name: str) -> Study:
    if _is_published(name):
        from headrace.lab.records.published import load_published

        return load_published()
    return load_study(Path(name))
