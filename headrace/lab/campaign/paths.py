"""Paths in a plan: relative to the plan's file, and looked at when it is read, not after a server was started."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from headrace.errors import ConfigError

Json = Any

Check = Callable[[Path], str | None]


def _a_file(path: Path) -> str | None:
    return None if path.is_file() else f"there is no file {path}"


def _a_tokenizer(path: Path) -> str | None:
    file = path / "tokenizer.json" if path.is_dir() else path
    if file.is_file() and file.suffix == ".json":
        return None
    return f"{path} is neither a tokenizer.json nor a directory that has one"


def _a_model(path: Path) -> str | None:
    if not path.is_dir():
        return f"there is no directory {path} (a name of the Hugging Face hub looks like Qwen/Qwen3-0.6B)"
    return None if (path / "config.json").is_file() else f"{path} has no config.json, so it is no model"


def _a_model_tokenizer(path: Path) -> str | None:
    if not path.is_dir():
        return f"there is no directory {path} (a name of the Hugging Face hub looks like Qwen/Qwen3-0.6B)"
    return None if (path / "tokenizer.json").is_file() else f"{path} has no tokenizer.json"


# (table, key) -> what must be there, and whether a name of the hub may stand in its place.
_PATHS: dict[tuple[str, str], tuple[Check, bool]] = {
    ("workload", "dataset-path"): (_a_file, False),
    ("workload", "arrivals-path"): (_a_file, False),
    ("workload", "tokenizer"): (_a_tokenizer, False),
    ("target", "model"): (_a_model, True),
    ("serve", "tokenizer"): (_a_model_tokenizer, True),
    ("sweep", "tokenizer"): (_a_model_tokenizer, True),
}


def make_paths_absolute(data: Mapping[str, Json], directory: Path) -> None:
    """In place, so that a plan means the same from every working directory; names of the hub stay as they are."""
    for table, key, values in _tables_with_paths(data):
        value = values[key]
        if isinstance(value, list):
            values[key] = [_absolute(table, key, one, directory) for one in value]
        else:
            values[key] = _absolute(table, key, value, directory)


def make_commands_absolute(data: Mapping[str, Json], directory: Path) -> None:
    """In place: a program with a slash in its name is relative to the plan's file, as paths are."""
    targets = data.get("targets")
    for table in [data.get("target"), *(targets.values() if isinstance(targets, dict) else ())]:
        command = table.get("command") if isinstance(table, dict) else None
        if isinstance(command, list) and command and isinstance(command[0], str) and "/" in command[0]:
            # Not resolved: a virtual environment's python is a link, and knows its environment by the link's place.
            command[0] = str(directory / Path(command[0]).expanduser())


def check_paths(data: Mapping[str, Json], *, source: str) -> None:
    """Raises ConfigError naming table, key and path when something that a plan names is not there.

    `data` has gone through `make_paths_absolute`: what is not absolute is a name of the hub.
    """
    for table, key, values in _tables_with_paths(data):
        check, _ = _PATHS[table, key.replace("_", "-")]
        for value in values[key] if isinstance(values[key], list) else [values[key]]:
            if isinstance(value, str) and Path(value).is_absolute() and (wrong := check(Path(value))) is not None:
                name = f"[[{table}]]" if table == "sweep" else f"[{table}]"
                raise ConfigError(f"{source}: {name} {key}: {wrong}")


def _tables_with_paths(data: Mapping[str, Json]) -> Iterator[tuple[str, str, dict[str, Json]]]:
    targets = data.get("targets")
    for table, key in _PATHS:
        found = data.get(table)
        tables = [*found] if isinstance(found, list | tuple) else [found]
        if table == "target" and isinstance(targets, dict):
            tables += targets.values()
        for values in tables:
            # A server that runs already has a name for its model, which is no path here; nor is a data set of the hub.
            named = isinstance(values, dict) and (
                (table == "target" and values.get("kind") == "url")
                or (key == "dataset-path" and "hf" in (values.get("dataset"), values.get("dataset-name")))
            )
            if isinstance(values, dict) and not named:
                # [workload] takes underscores as well.
                yield from ((table, spelled, values) for spelled in {key, key.replace("-", "_")} if spelled in values)


def _absolute(table: str, key: str, value: Json, directory: Path) -> Json:
    if not isinstance(value, str) or not value:
        return value
    path = directory / Path(value).expanduser()
    _, may_be_a_name = _PATHS[table, key.replace("_", "-")]
    if may_be_a_name and not path.exists() and _is_a_name(value, directory):
        return value
    return str(path.resolve())


def _is_a_name(value: str, directory: Path) -> bool:
    """Whether it can only be a name of the hub: NAME or OWNER/NAME, with no directory OWNER beside the plan."""
    owner, slash, name = value.partition("/")
    return not value.startswith(("/", ".", "~")) and "/" not in name and not (slash and (directory / owner).is_dir())
