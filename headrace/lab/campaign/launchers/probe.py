"""Questions to a server that has just been started: does it answer, is it ours."""

from __future__ import annotations

import contextlib
import json
import socket
from pathlib import Path

from headrace.lab.http import Peer, model_names


def get(port: int, path: str, *, timeout_s: float = 5.0) -> tuple[int, bytes]:
    """Status and body of a GET on 127.0.0.1.  Raises OSError when there is no whole HTTP answer in time."""
    with Peer(f"http://127.0.0.1:{port}", {"Connection": "close"}, timeout_s=timeout_s) as peer:
        return peer.get(path)


def answers(port: int, path: str = "/health", *, timeout_s: float = 5.0) -> bool:
    """Whether a GET ends with 200."""
    try:
        return get(port, path, timeout_s=timeout_s)[0] == 200
    except OSError:
        return False


def served_models(port: int) -> list[str]:
    """The names under /v1/models; empty when the answer is not what OpenAI's API promises."""
    try:
        status, body = get(port, "/v1/models")
    except OSError:
        return []
    return model_names(body) if status == 200 else []


def version(port: int) -> str | None:
    """What /version says, None when it says nothing usable."""
    try:
        status, body = get(port, "/version")
        return str(json.loads(body)["version"]) if status == 200 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def free_port() -> int:
    """A loopback port that is free now.  Another process may take it before a server does: check who answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(pid: int, port: int) -> bool:
    """Whether process `pid` itself holds a socket that listens on `port` (by its inode under /proc)."""
    inodes = _listening_inodes(port)
    with contextlib.suppress(OSError):
        for handle in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if handle.readlink().name in inodes:
                    return True
    return False


def _listening_inodes(port: int) -> set[str]:
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    found.add(f"socket:[{fields[9]}]")
    return found
