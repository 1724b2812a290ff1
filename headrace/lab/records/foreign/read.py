"""Files and directories -> runs, with a reason for everything that was not read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from headrace.errors import ConfigError
from headrace.lab.records.foreign.console import read_console
from headrace.lab.records.foreign.own import is_campaign, is_run, read_directory, read_toml
from headrace.lab.records.foreign.places import warm_up
from headrace.lab.records.foreign.values import clean
from headrace.lab.records.foreign.vllm_json import read_json
from headrace.lab.records.results import RunResult
from headrace.lab.records.store import MANIFEST, REQUESTS

# A result block or JSON is a few kilobytes; a detailed JSON a few megabytes.  Anything above is a trace or a model.
_MAX_BYTES = 512 * 1024 * 1024
_JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")


@dataclass(frozen=True, slots=True)
class Imported:
    """Runs in the order of the paths, and (file, reason) for each file (or part of one) that gave none.

    root   the common directory of all the paths; the sources of the runs are relative to it
    """

    runs: tuple[RunResult, ...]
    skipped: tuple[tuple[str, str], ...]
    root: Path


def read_paths(paths: Sequence[Path]) -> Imported:
    """Read every file, and every file below every directory (hidden ones excepted), in a stable order.

    Raises ConfigError when a path does not exist.  What cannot be read, and what is a warm-up, is in `skipped`.
    """
    runs: list[RunResult] = []
    skipped: list[tuple[str, str]] = []
    for path in paths:
        if not path.exists():
            raise ConfigError(f"{path} does not exist")
    wholes = [_whole(path) for path in paths]
    root = _common_directory(wholes)
    for path in _files(wholes):
        try:
            found, problems = read_file(path, os.path.relpath(path, root))
        except ConfigError as error:
            skipped.append((str(path), str(error)))
            continue
        except Exception as error:  # our fault, and no reason to lose the other files
            skipped.append((str(path), f"headrace could not read it ({type(error).__name__}: {error}); please report"))
            continue
        for run in found:
            reason = warm_up(run)
            if reason is None:
                runs.append(run)
            else:
                skipped.append((str(path), reason))
        skipped.extend((str(path), problem) for problem in problems)
    return Imported(tuple(runs), tuple(skipped), root)


def read_file(path: Path, source: str | None = None) -> tuple[tuple[RunResult, ...], tuple[str, ...]]:
    """The runs of one file (or of one run's directory) and the problems of its parts.

    source   what the runs call it, the path where it is not given

    Raises ConfigError with the reason when it is unreadable.
    """
    # names of files may be any bytes
    source = clean(os.fsencode(source if source is not None else path).decode("utf-8", "replace"))
    if path.is_dir():
        return read_directory(path, source), ()
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ConfigError(f"larger than {_MAX_BYTES >> 20} MiB")
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}") from None
    if not data.strip():
        raise ConfigError("empty file")
    text = _text(data)
    if path.suffix.lower() in _JSON_SUFFIXES:
        return read_json(text, source), ()
    if path.suffix.lower() == ".toml" and (rounds := read_toml(path, text)) is not None:
        return rounds, ()
    if text.lstrip()[:1] in ("{", "["):
        try:
            return read_json(text, source), ()
        except ConfigError:
            pass  # a log may start with a bracket too
    log = read_console(text, source)
    return log.runs, log.problems


def _text(data: bytes) -> str:
    # tee under PowerShell writes UTF-16 with a byte order mark
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", errors="replace")
    if b"\0" in data[:8192]:
        raise ConfigError("not a text file")
    return data.decode("utf-8-sig", errors="replace")


def _common_directory(paths: Sequence[Path]) -> Path:
    tops = [path if path.is_dir() and not is_run(path) else path.parent for path in map(_absolute, paths)]
    return Path(os.path.commonpath(tops)) if tops else Path()


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # resolves "..", and no links: the names are those that the user sees


def _whole(path: Path) -> Path:
    """The path, or the run's directory for one of its two files: a run's records are one thing."""
    directory = _absolute(path).parent
    return path.parent if path.name in (MANIFEST, REQUESTS) and is_run(directory) else path


def _files(paths: Iterable[Path]) -> Iterable[Path]:
    """Every file, and every directory that is one thing (a run, a campaign) as itself, once."""
    seen: set[Path] = set()
    for path in paths:
        for found in _inside(path) if path.is_dir() else [path]:
            key = found.resolve()
            if key not in seen:
                seen.add(key)
                yield found


def _inside(directory: Path) -> Iterable[Path]:
    if is_campaign(directory) or is_run(directory):
        yield directory
        return
    try:
        entries = sorted(directory.iterdir())
    except OSError:
        yield directory  # and its reader says why
        return
    for found in entries:
        if found.name.startswith("."):
            continue
        if found.is_file():
            yield found
        elif found.is_dir() and not found.is_symlink():  # a link may lead back
            yield from _inside(found)
