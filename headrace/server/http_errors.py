"""Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from headrace.errors import HeadraceError, InvalidRequest

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    409: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
}
# InvalidRequest.code -> status, for refusals that are not the request's own fault.
STATUS_OF_CODE = {
    "queue_full": 429,
    "model_not_found": 404,
    "draining": 503,
    "profiler_off": 404,
    "profiler_state": 409,
    "cache_in_use": 409,
}
RETRY_AFTER_S = 1


class ApiError(Exception):
    """An answer other than 200: status, a sentence for the caller, and the field that is to blame."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})
        if status in (429, 503):
            self.headers.setdefault("Retry-After", str(RETRY_AFTER_S))
        if status == 401:
            self.headers.setdefault("WWW-Authenticate", "Bearer")

    @classmethod
    def of(cls, error: HeadraceError) -> ApiError:
        """The answer to a request that the engine or the protocol refused, or that a stopped engine cannot serve."""
        if not isinstance(error, InvalidRequest):
            return cls(503, f"{error}.", code="engine_error")
        status = STATUS_OF_CODE.get(error.code or "", 400)
        return cls(status, str(error), param=error.param, code=error.code)

    def body(self) -> dict[str, Any]:
        kind = KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        # ASCII escapes: a message may quote a lone surrogate from the request, which UTF-8 cannot carry.
        content = json.dumps(self.body()).encode("ascii")
        return Response(content, self.status, headers=self.headers, media_type="application/json")
