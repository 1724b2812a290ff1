"""Files and directories -> runs, with a reason for everything that was not read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from headrace.errors import ConfigError
from headrace.lab.records.foreign.console import read_console
from headrace.lab.records.foreign.values import clean
from headrace.lab.records.foreign.vllm_json import read_json
from headrace.lab.records.results import RunResult

# A result block or JSON is a few kilobytes; a detailed JSON a few megabytes.  Anything above is a trace or a model.
_MAX_BYTES = 512 * 1024 * 1024
_JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")


@dataclass(frozen=True, slots=True)
class Imported:
    """Runs in the order of the paths, and (file, reason) for each file (or block) that gave none."""

    runs: tuple[RunResult, ...]
    skipped: tuple[tuple[str, str], ...]


def read_paths(paths: Sequence[Path]) -> Imported:
    """Read every file, and every file below every directory (hidden ones excepted), in a stable order.

    Raises ConfigError when a path does not exist.  What cannot be read is in `skipped`.
    """
    runs: list[RunResult] = []
    skipped: list[tuple[str, str]] = []
    for path in paths:
        if not path.exists():
            raise ConfigError(f"{path} does not exist")
    for path in _files(paths):
        try:
            found, problems = read_file(path)
        except ConfigError as error:
            skipped.append((str(path), str(error)))
            continue
        except Exception as error:  # our fault, and no reason to lose the other files
            skipped.append((str(path), f"headrace could not read it ({type(error).__name__}: {error}); please report"))
            continue
        runs.extend(found)
        skipped.extend((str(path), problem) for problem in problems)
    return Imported(tuple(runs), tuple(skipped))


def read_file(path: Path) -> tuple[tuple[RunResult, ...], tuple[str, ...]]:
    """The runs of one file and the problems of its parts.  Raises ConfigError with the reason when it is unreadable."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ConfigError(f"larger than {_MAX_BYTES >> 20} MiB")
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}") from None
    if not data.strip():
        raise ConfigError("empty file")
    text = _text(data)
    source = clean(os.fsencode(path).decode("utf-8", "replace"))  # names of files may be any bytes
    if path.suffix.lower() in _JSON_SUFFIXES:
        return read_json(text, source), ()
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


def _files(paths: Iterable[Path]) -> Iterable[Path]:
    seen: set[Path] = set()
    for path in paths:
        if path.is_dir():
            inside = sorted(
                found
                for found in path.rglob("*")
                if found.is_file() and not any(part.startswith(".") for part in found.relative_to(path).parts)
            )
        else:
            inside = [path]
        for found in inside:
            key = found.resolve()
            if key not in seen:
                seen.add(key)
                yield found
