"""Bytes of a request body -> a JSON object, with every limit checked before anything is believed."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any, NoReturn

from starlette.requests import ClientDisconnect, Request

from headrace.server.http_errors import ApiError

BODY_TIMEOUT_S = 60.0
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")


async def read_json_object(request: Request, max_bytes: int) -> dict[str, Any]:
    """Read and parse the body.  Raises ApiError: 408 too slow, 413 too large, 415 or 400 not JSON."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    # Asking for the header keeps other web pages from posting here: a browser sends JSON only after a preflight.
    if media_type != "application/json":
        raise ApiError(415, "The body must be sent with the header Content-Type: application/json.")
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return parse_object(await _read(request, max_bytes))
    except TimeoutError:
        raise ApiError(408, f"The body did not arrive within {BODY_TIMEOUT_S:.0f} s.") from None


async def _read(request: Request, max_bytes: int) -> bytes:
    too_large = ApiError(
        413,
        f"The body is larger than the server's limit of {max_bytes} bytes.",
        code="body_too_large",
    )
    # The connection stays open: closing it on a client that still sends would reset it before it reads the answer.
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > max_bytes:
        raise too_large
    body = bytearray()
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        if len(body) > max_bytes:
            raise too_large
        if not message.get("more_body", False):
            return bytes(body)


def parse_object(body: bytes) -> dict[str, Any]:
    """Strict JSON: UTF-8, no NaN or Infinity, no lone surrogates, bounded depth.  Raises ApiError (400)."""
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant, parse_float=_number)
        if _SURROGATE_ESCAPE.search(body):
            # A lone surrogate is legal JSON, but no text: tokenizers and UTF-8 encoders fail on it much later.
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError:
        raise ApiError(400, "The body is not valid UTF-8.", code="invalid_json") from None
    except UnicodeEncodeError:
        raise ApiError(400, "The body contains a lone surrogate, which is not text.", code="invalid_json") from None
    except RecursionError:
        raise ApiError(400, "The body is nested too deeply.", code="invalid_json") from None
    except ValueError as error:
        raise ApiError(400, f"The body is not valid JSON: {error}.", code="invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError(400, "The body must be a JSON object.", code="invalid_json")
    return value


def _number(text: str) -> int | float:
    """JSON has one kind of number: 16.0 is a whole one, and fits a field that wants such."""
    value = float(text)
    return int(value) if value.is_integer() else value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
