"""The door: no route answers without the key, except those that a load balancer must see."""

from __future__ import annotations

import hashlib
import hmac

from starlette.types import ASGIApp, Receive, Scope, Send

from headrace.server.http_errors import ApiError

OPEN_PATHS = frozenset({"/health", "/health/live", "/health/ready", "/ping", "/version"})


class KeyGuard:
    """ASGI middleware: 401 unless `Authorization: Bearer KEY` holds one of the keys.

    Default deny: routes that do not exist yet are closed as well.  Decided from the connection's own path
    (`scope["path"]`), never from a URL rebuilt from the Host header, which the client writes.
    """

    def __init__(self, app: ASGIApp, keys: tuple[str, ...]) -> None:
        self._app = app
        self._digests = [_digest(key.encode("utf-8", "surrogateescape")) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._digests and scope["path"] not in OPEN_PATHS and not self._allowed(scope):
            error = ApiError(401, "A valid API key is needed: Authorization: Bearer KEY.", code="invalid_api_key")
            await error.response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _allowed(self, scope: Scope) -> bool:
        values = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(values) != 1:
            return False
        scheme, _, key = values[0].partition(b" ")
        if scheme.lower() != b"bearer":
            return False
        # Digests have one length and are compared without early exit, all of them: time tells nothing about a key.
        given = _digest(key.strip())
        return sum(hmac.compare_digest(given, digest) for digest in self._digests) > 0


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
