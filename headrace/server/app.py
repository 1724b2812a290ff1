"""The application: every route in one list, behind the key, answering errors in OpenAI's shape."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from headrace.errors import HeadraceError
from headrace.server import endpoints, periodic_log
from headrace.server.description import describe
from headrace.server.guard import KeyGuard
from headrace.server.http_errors import ApiError
from headrace.server.options import ServerOptions
from headrace.server.state import ServedEngine, Service
from headrace.version import VERSION

logger = logging.getLogger("headrace.server")

ROUTES: endpoints.Routes = [
    ("POST", "/v1/completions", endpoints.completions),
    ("POST", "/v1/chat/completions", endpoints.chat_completions),
    ("GET", "/v1/models", endpoints.models),
    ("GET", "/v1/models/{model_id:path}", endpoints.model),
    ("POST", "/tokenize", endpoints.tokenize),
    ("POST", "/detokenize", endpoints.detokenize),
    ("GET", "/health", endpoints.health),
    ("GET", "/health/ready", endpoints.health),
    ("GET", "/health/live", endpoints.live),
    ("GET", "/ping", endpoints.health),
    ("POST", "/ping", endpoints.health),
    ("GET", "/version", endpoints.version),
    ("GET", "/load", endpoints.load),
    ("GET", "/metrics", endpoints.metrics),
    ("POST", "/reset_prefix_cache", endpoints.reset_prefix_cache),
    ("POST", "/start_profile", endpoints.start_profile),
    ("POST", "/stop_profile", endpoints.stop_profile),
]


def create_app(engine: ServedEngine | None, options: ServerOptions) -> FastAPI:
    """The ASGI application.  Without an engine it answers 503 until `app.state.service.attach(engine)`."""
    service = Service(options, started_s=int(time.time()))
    if engine is not None:
        service.attach(engine)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        reporter = asyncio.create_task(periodic_log.report_forever(service))
        try:
            yield
        finally:
            reporter.cancel()
            with suppress(asyncio.CancelledError):
                await reporter

    app = FastAPI(
        title="headrace",
        version=VERSION,
        lifespan=lifespan,
        # The pages of /docs load scripts from the network; the schema itself stays at /openapi.json.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # the target would be built from the client's own Host header
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.service = service
    described = describe(ROUTES, needs_key=bool(options.api_keys))
    app.openapi = lambda: described  # type: ignore[method-assign]
    for path, handler in dict.fromkeys((path, handler) for _, path, handler in ROUTES):
        # One route a path, so that a 405 names all of its methods.
        methods = [method for method, each, _ in ROUTES if each == path]
        app.add_api_route(path, handler, methods=methods, response_model=None)
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(HeadraceError, _on_headrace_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(ClientDisconnect, _on_client_disconnect)
    app.add_exception_handler(Exception, _on_bug)
    app.add_middleware(KeyGuard, keys=options.api_keys)
    return app


async def _on_api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _on_headrace_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HeadraceError)
    return ApiError.of(error).response()


async def _on_http_exception(_: Request, error: Exception) -> Response:
    """Routing's own errors: no such path, no such method."""
    assert isinstance(error, HTTPException)
    return ApiError(error.status_code, f"{error.detail}.", headers=error.headers).response()


async def _on_client_disconnect(_: Request, error: Exception) -> Response:
    return Response(status_code=endpoints.CLIENT_CLOSED_REQUEST)


async def _on_bug(request: Request, error: Exception) -> Response:
    # Starlette logs the traceback when it re-raises; the caller learns only that it is our fault.
    return ApiError(500, "The server failed to answer.", code="internal_error").response()
