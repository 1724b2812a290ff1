"""Files that a `kill -9` cannot leave half written, and the lock that keeps two labs apart."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from headrace.errors import ConfigError, LaunchError
from headrace.lab.campaign.launchers.process import ProcessIdentity
from headrace.lab.files import sync_directory, write_durably

Json = Any
LOCK_NAME = "lock"


def write_json(path: Path, data: Json) -> None:
    """Replace a file by JSON text, whole or not at all, and durably."""
    write_durably(path, json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def sync_tree(directory: Path) -> None:
    """Make every file under `directory`, and its name, durable."""
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        elif path.is_dir():
            sync_directory(path)
    sync_directory(directory)


def checksum(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def campaign_lock(directory: Path) -> Iterator[None]:
    """Hold a campaign's directory for this process alone.

    The kernel drops the lock when the process ends, however it ends; so a lock is never stale.  Raises ConfigError
    when another lab has it.
    """
    path = directory / LOCK_NAME
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise ConfigError(
                f"{directory} is in use by another headrace run ({owner}); wait for it, or give another --out"
            ) from None
        me = ProcessIdentity.of(os.getpid())
        file.truncate(0)
        file.write(f"process {me.pid} on {me.host}")
        file.flush()
        yield


@contextlib.contextmanager
def disk_errors(what: Path) -> Iterator[None]:
    """Turn a full or unwritable disk into a LaunchError of kind "disk" that says where, and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO):
            raise
        raise LaunchError(
            f"{what} cannot be written: {error.strerror}; what is finished is kept, and the same command resumes",
            kind="disk",
        ) from error
