"""The few plain calls around a run: is the server there, which model does it serve, start and stop its profiler."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping

from headrace.errors import ConfigError, LaunchError

# A proxy from the environment would stand between us and a server on this machine.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def base_of(url: str) -> str:
    """The server's root: without a trailing slash or `/v1`.  Raises ConfigError for what is not an http address."""
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"the server's address must begin with http:// or https://, not {url!r}")
    return url.rstrip("/").removesuffix("/v1")


def request_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """`headers`, with OPENAI_API_KEY as the bearer token unless they bring their own authorisation."""
    key = os.environ.get("OPENAI_API_KEY")
    if key and "authorization" not in {name.lower() for name in headers}:
        return {"Authorization": f"Bearer {key}", **headers}
    return dict(headers)


def call(
    method: str, url: str, headers: Mapping[str, str], *, timeout_s: float = 30.0, data: bytes | None = None
) -> tuple[int, bytes]:
    """One small request: status and body.  Raises OSError when the server cannot be reached."""
    request = urllib.request.Request(url, data=data, headers=dict(headers), method=method)
    try:
        with _OPENER.open(request, timeout=timeout_s) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def served_models(base_url: str, headers: Mapping[str, str], *, wait_s: float = 0.0) -> list[str]:
    """Names of the models behind /v1/models; empty when the server has no such list.

    Asks again for `wait_s` seconds while the server cannot be reached or answers 5xx (it is loading), then raises
    LaunchError (kind "not_ready").
    """
    deadline = time.monotonic() + wait_s
    while True:
        try:
            status, body = call("GET", f"{base_url}/v1/models", headers)
            problem = f"status {status}: {body[:200].decode('utf-8', 'replace')}"
        except OSError as error:
            status, body, problem = 503, b"", str(getattr(error, "reason", error))
        except ValueError as error:
            raise ConfigError(f"the server's address {base_url!r} is not an address ({error})") from None
        if status < 500:
            break
        if time.monotonic() >= deadline:
            raise LaunchError(f"no server answers at {base_url} ({problem})", kind="not_ready") from None
        time.sleep(0.2)
    if status in (401, 403):
        raise ConfigError(f"{base_url} refuses us (status {status}): set OPENAI_API_KEY to the server's key")
    try:
        return [str(model["id"]) for model in json.loads(body)["data"]]
    except (ValueError, KeyError, TypeError):
        return []


def profiler(base_url: str, headers: Mapping[str, str], action: str) -> None:
    """POST /start_profile or /stop_profile.  Flushing a trace takes minutes on a large model, so it may wait long.

    Raises ConfigError when the server has no profiler.
    """
    try:
        status, body = call("POST", f"{base_url}/{action}_profile", headers, timeout_s=3600.0, data=b"")
    except OSError as error:
        raise LaunchError(f"the server did not answer /{action}_profile ({error})", kind="timeout") from None
    if status != 200:
        raise ConfigError(
            f"--profile: the server has no profiler (/{action}_profile answered {status}:"
            f" {body[:200].decode('utf-8', 'replace')}); start it with its profiler on, or leave --profile out"
        )
