"""Servers without a model, in processes of their own, for benchmarks of clients."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

TIMED = str(Path(__file__).with_name("timed_server.py"))


@contextlib.contextmanager
def running(*words: str) -> Iterator[str]:
    """`python WORDS`, which prints its port and ends with its standard input; gives its address.

    Whatever it writes at its end is written when the context is left.
    """
    server = subprocess.Popen([sys.executable, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdin is not None and server.stdout is not None
    try:
        yield f"http://127.0.0.1:{server.stdout.readline().strip()}"
    finally:
        server.stdin.close()
        server.wait(20)
