"""The few plain calls around a run: is the server there, which model does it serve, start and stop its profiler."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping

from headrace.errors import ConfigError, HeadraceError, LaunchError
from headrace.lab.http import Peer, model_names

_PROFILER_TIMEOUT_S = 3600.0


def request_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """`headers`, with OPENAI_API_KEY as the bearer token unless they bring their own authorisation."""
    key = os.environ.get("OPENAI_API_KEY")
    if key and "authorization" not in {name.lower() for name in headers}:
        return {"Authorization": f"Bearer {key}", **headers}
    return dict(headers)


def served_models(base_url: str, headers: Mapping[str, str], *, wait_s: float = 0.0) -> list[str]:
    """Names of the models behind /v1/models; empty when the server has no such list.

    Asks again for `wait_s` seconds while the server cannot be reached or answers 5xx (it is loading), then raises
    LaunchError (kind "not_ready").
    """
    deadline = time.monotonic() + wait_s
    while True:
        try:
            with Peer(base_url, headers) as peer:
                status, body = peer.get("/v1/models")
            problem = f"status {status}: {body[:200].decode('utf-8', 'replace')}"
        except OSError as error:
            status, body, problem = 503, b"", str(error)
        if status < 500:
            break
        if time.monotonic() >= deadline:
            raise LaunchError(f"no server answers at {base_url} ({problem})", kind="not_ready") from None
        time.sleep(0.2)
    if status in (401, 403):
        raise ConfigError(f"{base_url} refuses us (status {status}): set OPENAI_API_KEY to the server's key")
    return model_names(body)


def profiler(base_url: str, headers: Mapping[str, str], action: str) -> None:
    """POST /start_profile or /stop_profile.  Flushing a trace takes minutes on a large model, so it may wait long.

    Raises ConfigError when the server has no profiler.
    """
    try:
        with Peer(base_url, headers, timeout_s=_PROFILER_TIMEOUT_S) as peer:
            status, body = peer.post(f"/{action}_profile")
    except OSError as error:
        raise LaunchError(f"the server did not answer /{action}_profile ({error})", kind="timeout") from None
    if status != 200:
        raise ConfigError(
            f"--profile: the server has no profiler (/{action}_profile answered {status}:"
            f" {body[:200].decode('utf-8', 'replace')}); start it with its profiler on, or leave --profile out"
        )


class BoundedProfile:
    """The server's profiler, started now and stopped after `max_s` seconds or by `stop`, whatever comes first.

    A trace of a whole run takes minutes and gigabytes: vLLM's own page says ten minutes for a hundred requests.
    """

    def __init__(self, base_url: str, headers: Mapping[str, str], *, max_s: float) -> None:
        self._url, self._headers = base_url, headers
        profiler(base_url, headers, "start")
        self._error: HeadraceError | None = None
        self._early = False
        self._timer = threading.Timer(max_s, self._stop_early)
        self._timer.daemon = True
        self._timer.start()

    def _stop_early(self) -> None:
        self._early = True
        try:
            profiler(self._url, self._headers, "stop")
        except HeadraceError as error:
            self._error = error

    def stop(self) -> bool:
        """Stop it; whether it had been stopped before, by its bound.  Raises what stopping raised, then or now."""
        self._timer.cancel()
        if not self._early:
            profiler(self._url, self._headers, "stop")
            return False
        self._timer.join()
        if self._error is not None:
            raise self._error
        return True
