"""Files that neither a reader nor a crash ever finds half written."""

from __future__ import annotations

import os
from pathlib import Path

from headrace.errors import ConfigError


def write_durably(path: Path, data: bytes | str) -> None:
    """Write a file (text as UTF-8) that is whole or absent after a crash: temporary file, fsync, rename, fsync of the
    directory.

    A link keeps pointing to its file; what is no regular file (a pipe, /dev/null) is written to, never replaced.
    Raises OSError, and leaves no temporary file.
    """
    content = data.encode() if isinstance(data, str) else data
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_where_asked(path: Path, text: str, *, what: str) -> None:
    """Write a file at a place that the user named, making the directories that lead there.

    Raises ConfigError: "`what` cannot be written: the reason".
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, text)
    except OSError as error:
        raise ConfigError(f"{what} cannot be written: {error.strerror or error}") from None


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable (renames and new files)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
