"""Standard streams whose reader may leave: `headrace bench | head -1` must measure to its end and keep its result."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import IO, Any


class _Tolerant:
    """A text stream that goes on into nothing once its reader is gone."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._reader_left()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._reader_left()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _reader_left(self) -> None:
        # What is still buffered, and what the interpreter flushes at its end, goes nowhere and raises nothing.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        with contextlib.suppress(OSError, ValueError):
            os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


@contextlib.contextmanager
def readers_may_leave() -> Iterator[None]:
    """Inside the block a closed pipe ends neither the work nor the exit code that it earns."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Tolerant(before[0]), _Tolerant(before[1])
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stdout, sys.stderr = before
