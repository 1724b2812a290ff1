"""A server on a free loopback port for the length of a `with` block, in the test's own event loop."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import uvicorn

from headrace.server.app import create_app
from headrace.server.lifecycle import bind
from headrace.server.options import ServerOptions
from headrace.server.state import ServedEngine


@dataclass(frozen=True, slots=True)
class Served:
    url: str
    http: httpx.AsyncClient
    openai: openai.AsyncOpenAI


class _Server(uvicorn.Server):
    """uvicorn without its polling: it waits for an event, and at the end for every handler to return."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.stop = asyncio.Event()

    async def main_loop(self) -> None:
        await self.stop.wait()

    async def shutdown(self, sockets: Any = None) -> None:
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        async with asyncio.timeout(10):
            await asyncio.gather(*self.server_state.tasks)
        await self.lifespan.shutdown()


@asynccontextmanager
async def serving(
    engine: ServedEngine | None, options: ServerOptions | None = None, key: str = "none"
) -> AsyncIterator[Served]:
    options = options or ServerOptions()
    listener = bind("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = _Server(uvicorn.Config(create_app(engine, options), log_config=None, ws="none"))
    task = asyncio.create_task(server._serve([listener]))  # `serve` would take over the test's signals
    # verify=False: no TLS here, and loading the certificates would take most of a test's time.
    own = httpx.AsyncClient(verify=False, timeout=20)
    async with httpx.AsyncClient(base_url=url, verify=False, timeout=20) as http:
        client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, http_client=own)
        try:
            yield Served(url, http, client)
        finally:
            await client.close()
            await http.aclose()
            server.stop.set()
            await task


def in_loop_for(
    seconds: float,
) -> Callable[[Callable[..., Awaitable[None]]], Callable[..., None]]:
    """Run an async test to its end, bounded, so that a hang is a failure."""

    def wrap(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
        @functools.wraps(test)
        def run(*args: Any, **kwargs: Any) -> None:
            asyncio.run(asyncio.wait_for(test(*args, **kwargs), seconds))

        return run

    return wrap


in_loop = in_loop_for(30)


def events(body: str) -> list[Any]:
    """The payloads of an SSE body; `[DONE]` stays a string."""
    frames = body.split("\n\n")
    assert frames[-1] == "", "the last frame is complete"
    payloads = [frame.removeprefix("data: ") for frame in frames[:-1]]
    assert all(frame.startswith("data: ") and "\n" not in frame for frame in frames[:-1])
    return [payload if payload == "[DONE]" else json.loads(payload) for payload in payloads]


def error_of(response: httpx.Response) -> dict[str, Any]:
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    error: dict[str, Any] = body["error"]
    return error
