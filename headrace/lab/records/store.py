"""A run on disk: written so that it is either whole and proven, or visibly not there.

A run directory holds `requests.jsonl` (one record a line) and `manifest.json` (everything else, with checksums).  The
manifest is written last: temporary file, fsync, rename, fsync of the directory.  A directory with a manifest is DONE;
anything else is a run that did not end, and is measured again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from headrace.errors import ConfigError, LaunchError
from headrace.lab.files import write_durably
from headrace.lab.records.schema import SCHEMA_VERSION, ChunkStamp, RequestRecord

MANIFEST = "manifest.json"
INTERRUPTED = "interrupted.json"
REQUESTS = "requests.jsonl"

# One letter a message: a run has hundreds of thousands of them.
_LETTERS = {"content": "c", "reasoning": "r", "tool_call": "t", "role": "o", "empty": "e"}
_KINDS = {letter: kind for kind, letter in _LETTERS.items()}
_FIELDS = tuple(f.name for f in fields(RequestRecord) if f.name != "chunks")


def write_run(
    directory: Path, manifest: Mapping[str, Any], records: Iterable[RequestRecord], *, interrupted: bool = False
) -> None:
    """Write a run durably.  An interrupted run keeps its records beside `interrupted.json` and is never DONE.

    Raises LaunchError (kind "disk") when the file system refuses, and ConfigError when a finished run is there.
    """
    if (directory / MANIFEST).exists():
        raise ConfigError(f"{directory} already holds a finished run; choose another directory")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lines = "".join(record_line(record) for record in records)
        data = lines.encode()
        write_durably(directory / REQUESTS, data)
        body = {
            "schema_version": SCHEMA_VERSION,
            **manifest,
            "files": {REQUESTS: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}},
        }
        body["manifest_sha256"] = _digest(body)
        text = json.dumps(body, indent=1, ensure_ascii=False) + "\n"
        write_durably(directory / (INTERRUPTED if interrupted else MANIFEST), text)
    except OSError as error:
        raise LaunchError(f"the run cannot be written to {directory}: {error.strerror}", kind="disk") from None


def is_done(directory: Path) -> bool:
    """Whether a finished run is there (`read_run` proves that it is undamaged)."""
    return (directory / MANIFEST).is_file()


def read_run(directory: Path) -> tuple[dict[str, Any], list[RequestRecord]]:
    """A finished run: its manifest and its records.  Raises ConfigError with one sentence when anything is damaged."""
    manifest = _read_manifest(directory)
    wanted = manifest["files"][REQUESTS]
    data = _read_bytes(directory / REQUESTS)
    if len(data) != wanted["bytes"] or hashlib.sha256(data).hexdigest() != wanted["sha256"]:
        raise ConfigError(
            f"{directory / REQUESTS} is damaged: it is not what {MANIFEST} recorded; measure the run again"
        )
    return manifest, [read_record(line) for line in data.decode().splitlines()]


def read_run_times(directory: Path) -> tuple[int, int]:
    """When a finished run began and ended, on its records' clock.  Raises ConfigError as `read_run` does."""
    manifest = _read_manifest(directory)
    return int(manifest["start_ns"]), int(manifest["end_ns"])


def _read_manifest(directory: Path) -> dict[str, Any]:
    path = directory / MANIFEST
    if not path.is_file():
        state = "was interrupted" if (directory / INTERRUPTED).is_file() else "did not end, or is not a run"
        raise ConfigError(f"{directory} has no {MANIFEST}: the run {state}")
    try:
        manifest = json.loads(_read_bytes(path))
    except ValueError:
        raise ConfigError(f"{path} is damaged: it is not JSON; measure the run again") from None
    if not isinstance(manifest, dict):
        raise ConfigError(f"{path} is not a run's manifest")
    version = manifest.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ConfigError(f"{path} has schema version {version!r}; this headrace reads version {SCHEMA_VERSION}")
    recorded = manifest.pop("manifest_sha256", None)
    if recorded != _digest(manifest):
        raise ConfigError(f"{path} is damaged: its content does not match its checksum; measure the run again")
    return manifest


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def record_line(record: RequestRecord) -> str:
    """A record as one line of JSON, read back by `read_record`."""
    row: dict[str, Any] = {name: getattr(record, name) for name in _FIELDS}
    row["chunk_ns"] = [chunk.t_ns for chunk in record.chunks]
    row["chunk_kinds"] = "".join(_LETTERS[chunk.kind] for chunk in record.chunks)
    # ASCII: a text may hold U+2028 and other characters that some readers take for an end of line.
    return json.dumps(row, ensure_ascii=True, separators=(",", ":")) + "\n"


def read_record(line: str) -> RequestRecord:
    """A record back from its line."""
    row = json.loads(line)
    times, kinds = row.pop("chunk_ns"), row.pop("chunk_kinds")
    chunks = [ChunkStamp(t_ns, _KINDS[letter]) for t_ns, letter in zip(times, kinds, strict=True)]
    return RequestRecord(**row, chunks=chunks)
