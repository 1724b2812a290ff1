"""Small HTTP calls beside the measured traffic: who is there, count these tokens, show the metrics.

`http.client`, not `urllib`: a proxy from the environment must not stand between the lab and a server.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from types import TracebackType
from urllib.parse import urlsplit

from headrace.errors import ConfigError

MAX_ANSWER_BYTES = 64 << 20


def base_of(url: str) -> str:
    """The server's root: without a trailing slash or `/v1`.  Raises ConfigError for what is not an http address."""
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"the server's address must begin with http:// or https://, not {url!r}")
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna")
        known = bool(host) and parts.port != 0 and not any(char <= " " or char == "\x7f" for char in url)
    except ValueError as error:
        raise ConfigError(f"the server's address {url!r} is not an address ({error})") from None
    if not known or parts.query or parts.fragment or parts.username is not None:
        raise ConfigError(f"the server's address must be like http://127.0.0.1:8000, not {url!r}")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


class Peer:
    """A server at `base_url`, over one connection that is kept between calls.  Not for several threads.

    Every call raises OSError when there is no whole HTTP answer in time, and ConfigError for an address or headers
    that cannot be sent.
    """

    def __init__(self, base_url: str, headers: Mapping[str, str] | None = None, *, timeout_s: float = 30.0) -> None:
        parts = urlsplit(base_of(base_url))
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.hostname or "", parts.port, timeout=timeout_s)
        self._prefix = parts.path
        self._headers = dict(headers or {})

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and body."""
        return self._call("GET", path, None, self._headers)

    def post(self, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Status and body of the answer to a JSON body (or to none)."""
        return self._call("POST", path, body, {"Content-Type": "application/json", **self._headers})

    def _call(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> tuple[int, bytes]:
        # A kept connection may have been closed by the server since the last call; a fresh one tells the truth.
        kept = self._connection.sock is not None
        try:
            return self._once(method, path, body, headers)
        except OSError as error:
            if not kept or isinstance(error, TimeoutError):
                raise
            return self._once(method, path, body, headers)

    def _once(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> tuple[int, bytes]:
        try:
            self._connection.request(method, self._prefix + path, body=body, headers=dict(headers))
            response = self._connection.getresponse()
            data = response.read(MAX_ANSWER_BYTES)
            if not response.isclosed():  # more than anybody should read
                self._connection.close()
            return response.status, data
        except ValueError as error:  # http.client's InvalidURL, too: nothing was sent
            self._connection.close()
            raise ConfigError(f"the request cannot be sent as it is: {error}") from None
        except http.client.HTTPException as error:
            self._connection.close()
            raise ConnectionError(f"not HTTP: {type(error).__name__}") from None
        except BaseException:
            self._connection.close()
            raise


def model_names(body: bytes) -> list[str]:
    """The names in an answer of /v1/models; empty when it is not what OpenAI's API promises."""
    try:
        return [str(model["id"]) for model in json.loads(body)["data"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
