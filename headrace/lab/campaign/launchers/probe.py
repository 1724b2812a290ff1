"""Questions to a server that has just been started: does it answer, is it ours."""

from __future__ import annotations

import contextlib
import json
import socket

from headrace.lab.http import Peer, model_names


def get(url: str, path: str, *, timeout_s: float = 5.0) -> tuple[int, bytes]:
    """Status and body of a GET.  Raises OSError when there is no whole HTTP answer in time."""
    with Peer(url, {"Connection": "close"}, timeout_s=timeout_s) as peer:
        return peer.get(path)


def answers(url: str, path: str = "/health", *, timeout_s: float = 5.0) -> bool:
    """Whether a GET ends with 200."""
    try:
        return get(url, path, timeout_s=timeout_s)[0] == 200
    except OSError:
        return False


def served_models(url: str) -> list[str]:
    """The names under /v1/models; empty when the answer is not what OpenAI's API promises."""
    try:
        status, body = get(url, "/v1/models")
    except OSError:
        return []
    return model_names(body) if status == 200 else []


def version(url: str) -> str | None:
    """What /version says (SGLang says it in its description), None when there is nothing usable."""
    for path in ("/version", "/get_server_info"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            status, body = get(url, path)
            if status == 200:
                return str(json.loads(body)["version"])
    return None


def free_port() -> int:
    """A loopback port that is free now.  Another process may take it before a server does: check who answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
