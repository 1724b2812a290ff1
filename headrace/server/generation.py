"""From an accepted Generation to its outputs: submit, merge the sequences, and end them all whatever happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import TypeVar

from starlette.types import Receive

from headrace.core.request import GRAMMAR_FAILED, FinishReason
from headrace.engine.async_engine import Output
from headrace.server.http_errors import ApiError
from headrace.server.protocol import Generation
from headrace.server.state import Service

T = TypeVar("T")


class Running:
    """The sequences of one API request, submitted to the engine.

    Raises InvalidRequest from the constructor when the engine refuses one of them (the others are aborted).
    `close()` must be called once, and ends whatever still runs.
    """

    def __init__(self, service: Service, generation: Generation) -> None:
        self._service = service
        self._engine = service.engine
        self._requests = generation.requests if generation.needs_engine else ()
        self._n = generation.n
        self._per_prompt = generation.num_sequences
        self._live: set[int] = set()
        self._pumps: list[asyncio.Task[None]] = []
        self._streams: list[AsyncIterator[Output]] = []
        self._tokens = [0] * len(self._requests)
        service.admit(len(self._requests))
        try:
            for index, request in enumerate(self._requests):
                self._streams.append(self._engine.submit(request))
                self._live.add(index)
                service.in_flight += 1
        except BaseException:
            for index in tuple(self._live):
                self._engine.abort(self._requests[index].request_id)
                self._ended(index)
            raise

    async def outputs(self) -> AsyncIterator[tuple[int, Output]]:
        """(index of the choice, output) as they come.  Raises ApiError when a sequence fails or is aborted."""
        if len(self._streams) == 1:
            async for output in self._streams[0]:
                self._check(0, output)
                yield 0, output
            return
        arrived: asyncio.Queue[tuple[int, Output | BaseException | None]] = asyncio.Queue()
        self._pumps = [asyncio.create_task(_pump(i, stream, arrived)) for i, stream in enumerate(self._streams)]
        left = len(self._pumps)
        while left:
            index, item = await arrived.get()
            if item is None:
                left -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                self._check(index, item)
                yield index, item

    def _check(self, index: int, output: Output) -> None:
        self._tokens[index] = output.num_output_tokens
        if output.finish_reason is None:
            return
        self._ended(index)
        if output.finish_reason is FinishReason.ERROR and (output.error or "").startswith(GRAMMAR_FAILED):
            raise ApiError(400, f"{output.error}.", code="invalid_grammar")
        if output.finish_reason is FinishReason.ERROR:
            healthy, why = self._engine.is_healthy()
            if not healthy:  # not this request's fault: another server, or this one restarted, may answer it
                raise ApiError(503, output.error or f"The engine makes no progress: {why}.", code="engine_error")
            raise ApiError(500, output.error or "The request failed in the engine.", code="engine_error")
        if output.finish_reason is FinishReason.ABORT:
            if self._service.draining:
                raise ApiError(503, "The server is shutting down; the request was aborted.", code="aborted")
            raise ApiError(500, output.error or "The request was aborted.", code="aborted")

    def _ended(self, index: int) -> None:
        if index in self._live:
            self._live.remove(index)
            self._service.in_flight -= 1

    async def close(self) -> None:
        """Abort what has not ended.  Blocks return to the engine within one step."""
        for index in tuple(self._live):
            self._engine.abort(self._requests[index].request_id)
            self._ended(index)
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)
        for stream in self._streams:
            aclose = getattr(stream, "aclose", None)
            if aclose is not None:
                await aclose()
        for start in range(0, len(self._requests), self._per_prompt):
            self._service.metrics.answered(self._n, max(self._tokens[start : start + self._per_prompt]))


async def _pump(
    index: int, stream: AsyncIterator[Output], arrived: asyncio.Queue[tuple[int, Output | BaseException | None]]
) -> None:
    try:
        async for output in stream:
            arrived.put_nowait((index, output))
        arrived.put_nowait((index, None))
    except Exception as error:
        arrived.put_nowait((index, error))


class Disconnected(Exception):
    """The client went away before its answer was complete."""


async def unless_disconnected(receive: Receive, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled as soon as the client goes away.  Raises Disconnected.

    Starlette watches the connection for streaming responses only; plain handlers would generate to the end for nobody.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Disconnected
    finally:
        for future in (task, gone):
            future.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
