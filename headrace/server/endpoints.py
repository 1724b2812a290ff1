"""The handlers: one function per route, listed in app.py."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from headrace.errors import HeadraceError, InvalidRequest
from headrace.server import sse
from headrace.server.bodies import (
    Body,
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    TokenizeBody,
    parse,
)
from headrace.server.generation import Disconnected, Running, unless_disconnected
from headrace.server.http_errors import ApiError
from headrace.server.protocol import Generation, chat, chat_text, checked_ids, completion
from headrace.server.request_body import read_json_object
from headrace.server.responses import WholeAnswer
from headrace.server.state import ServedEngine, Service
from headrace.version import VERSION

logger = logging.getLogger("headrace.server")

T = TypeVar("T")
# Requests with a grammar may wait for its compilation: their own threads, so that no other request waits with them.
_CONSTRAINED = ThreadPoolExecutor(2, thread_name_prefix="constrained")
TOKENISE_INLINE_BYTES = 16 * 1024
SEND_STALL_S = 60.0
CLIENT_CLOSED_REQUEST = 499  # nobody reads it; nginx's number, for the access log


def service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


# --- generation -------------------------------------------------------------------------------------------------------


async def completions(request: Request) -> Response:
    return await _generate(request, CompletionBody, completion)


async def chat_completions(request: Request) -> Response:
    options = service_of(request).options
    return await _generate(request, ChatBody, lambda body, name, engine: chat(body, name, engine, options))


async def _generate(
    request: Request, model: type[Body], accept: Callable[[Body, str, ServedEngine], Generation]
) -> Response:
    service = service_of(request)
    service.admit(1)
    body = parse(model, await read_json_object(request, service.options.max_body_bytes))
    name = service.check_model(getattr(body, "model", None))
    declared = request.headers.get("content-length", "")
    small = declared.isdecimal() and len(declared) < 6 and int(declared) < TOKENISE_INLINE_BYTES
    if getattr(body, "is_constrained", False):
        work = partial(accept, body, name, service.engine)
        generation = await asyncio.get_running_loop().run_in_executor(_CONSTRAINED, work)
    else:
        generation = await _off_loop_if(not small, lambda: accept(body, name, service.engine))
    running = Running(service, generation)
    if service.options.enable_log_requests:
        first = generation.requests[0]
        logger.info(
            "Received request %s: sequences: %d, prompt tokens: %d, params: %s",
            generation.request_id,
            len(generation.requests),
            sum(len(r.prompt_token_ids) for r in generation.requests[:: generation.num_sequences]),
            first.params,
        )
    headers = {"X-Request-Id": generation.request_id}
    if generation.stream:
        return EventStream(_events(service, generation, running), running, headers)
    try:
        answer = await unless_disconnected(request.receive, _collect(service, generation, running))
        return JSONResponse(answer, headers=headers)
    except Disconnected:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    finally:
        await running.close()


async def _off_loop_if(large: bool, work: Callable[[], T]) -> T:
    """Run `work` here, or in a thread when it is long enough to make other streams stutter."""
    return await asyncio.to_thread(work) if large else work()


async def _collect(service: Service, generation: Generation, running: Running) -> dict[str, Any]:
    answer = WholeAnswer(generation, service.engine.tokenizer)
    async for index, output in running.outputs():
        answer.add(index, output)
    return answer.as_json()


async def _events(service: Service, generation: Generation, running: Running) -> AsyncIterator[bytes]:
    """All frames of a stream; a failure becomes an error event, because the status is already sent."""
    chunks = sse.Chunks(generation, service.engine.tokenizer)
    failure = b""
    try:
        if not generation.needs_engine:
            for index in range(len(generation.requests)):
                yield chunks.only_echo(index)
        async for index, output in running.outputs():
            if frame := chunks.chunk(index, output):
                yield frame
    except HeadraceError as error:
        failure = sse.event(ApiError.of(error).body())
    except ApiError as error:
        failure = sse.event(error.body())
    except Exception:
        logger.exception("Request %s failed", generation.request_id)
        failure = sse.event(ApiError(500, "The server failed to answer.", code="internal_error").body())
    yield chunks.usage() + failure + sse.DONE


class EventStream(Response):
    """Sends frames as they come, one write each, and ends the generation when the client is gone or stops reading."""

    media_type = "text/event-stream"

    def __init__(self, frames: AsyncIterator[bytes], running: Running, headers: dict[str, str]) -> None:
        # No charset parameter, no length; proxies must pass events on at once.
        super().__init__(headers={**headers, "Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._frames = frames
        self._running = running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_disconnected(receive, self._send_all(send))
        except Disconnected:
            pass
        except TimeoutError:
            # Returning without the last message makes uvicorn close the connection.
            logger.info("A client did not read its stream for %.0f s; its request was aborted", SEND_STALL_S)
        finally:
            await self._running.close()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for frame in self._frames:
            # `send` waits while the client's buffers are full: a bound on memory, and here on patience.
            async with asyncio.timeout(SEND_STALL_S):
                await send({"type": "http.response.body", "body": frame, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


# --- models and tokens ------------------------------------------------------------------------------------------------


async def models(request: Request) -> Response:
    service = service_of(request)
    return JSONResponse({"object": "list", "data": [_model_card(service, name) for name in service.model_names]})


async def model(request: Request) -> Response:
    service = service_of(request)
    return JSONResponse(_model_card(service, service.check_model(request.path_params["model_id"])))


def _model_card(service: Service, name: str) -> dict[str, Any]:
    config = service.engine.config
    return {
        "id": name,
        "object": "model",
        "created": service.started_s,
        "owned_by": "headrace",
        "root": config.model,
        "parent": None,
        "max_model_len": config.max_model_len,
    }


async def tokenize(request: Request) -> Response:
    service = service_of(request)
    body = await _small_body(request, TokenizeBody)
    service.check_model(body.model)
    tokenizer = service.engine.tokenizer
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequest("Send either `prompt` or `messages`.", param="prompt")

    def encode() -> list[int]:
        if body.messages is not None:
            text = chat_text(body.messages, tokenizer, body.add_generation_prompt, body.tools)
            return tokenizer.encode(text, bool(body.add_special_tokens))
        return tokenizer.encode(body.prompt or "", body.add_special_tokens is not False)

    tokens = await asyncio.to_thread(encode)
    return JSONResponse(
        {
            "count": len(tokens),
            "max_model_len": service.engine.config.max_model_len,
            "tokens": tokens,
            "token_strs": [tokenizer.token_text(token) for token in tokens] if body.return_token_strs else None,
        }
    )


async def detokenize(request: Request) -> Response:
    service = service_of(request)
    body = await _small_body(request, DetokenizeBody)
    service.check_model(body.model)
    tokenizer = service.engine.tokenizer
    tokens = checked_ids(body.tokens, tokenizer, "tokens")
    return JSONResponse({"prompt": await asyncio.to_thread(tokenizer.decode, tokens, False)})


async def _small_body(request: Request, kind: type[Body]) -> Body:
    return parse(kind, await read_json_object(request, service_of(request).options.max_body_bytes))


# --- operations -------------------------------------------------------------------------------------------------------


async def health(request: Request) -> Response:
    """200 while the engine makes progress (or has nothing to do) and new work is taken."""
    service = service_of(request)
    healthy, reason = service.engine.is_healthy()
    if not healthy:
        raise ApiError(503, f"The engine makes no progress: {reason}.", code="stalled")
    if service.draining:
        raise ApiError(503, "The server is shutting down.", code="draining")
    return Response(status_code=200)


async def live(request: Request) -> Response:
    """200 unless the engine is stalled: loading and draining are no reason to kill the process."""
    service = service_of(request)
    healthy, reason = service.progress()
    if not healthy:
        raise ApiError(503, f"The engine makes no progress: {reason}.", code="stalled")
    return Response(status_code=200)


async def version(request: Request) -> Response:
    return JSONResponse({"version": VERSION})


async def load(request: Request) -> Response:
    return JSONResponse({"server_load": service_of(request).in_flight})


async def reset_prefix_cache(request: Request) -> Response:
    """Forget all cached prefixes, so that the next requests find an empty cache; 409 while blocks are in use."""
    await service_of(request).engine.reset_prefix_cache()
    return Response(status_code=200)


async def start_profile(request: Request) -> Response:
    """404 without --profiler-config, 409 when it has been started."""
    return JSONResponse(await service_of(request).engine.start_profile())


async def stop_profile(request: Request) -> Response:
    """Answers when the trace is complete, which may take minutes; everything else goes on meanwhile."""
    return JSONResponse(await service_of(request).engine.stop_profile())


async def metrics(request: Request) -> Response:
    # In a thread: rendering some 600 lines takes milliseconds, in which no stream would get its token.
    content = await asyncio.to_thread(service_of(request).metrics.exposition)
    return Response(content, media_type="text/plain; version=0.0.4; charset=utf-8")


Handler = Callable[[Request], Any]
Routes = Sequence[tuple[str, str, Handler]]
