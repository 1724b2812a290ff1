"""The bytes of a stream: what a benchmark client counts."""

from __future__ import annotations

import asyncio
import json

import pytest
from fake_engine import ANSWER, TOKENIZER, ScriptedEngine
from server_harness import events, in_loop, serving

from headrace.server import endpoints, sse
from headrace.server.app import create_app
from headrace.server.options import ServerOptions

CHAT = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}


@in_loop
async def test_one_token_is_one_event_and_the_role_comes_with_the_first() -> None:
    async with serving(ScriptedEngine("abc" * 40)) as served:
        response = await served.http.post("/v1/chat/completions", json={**CHAT, "max_tokens": 4})
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, done = events(response.text)
    assert done == "[DONE]"
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0]["role"] == "assistant" and deltas[0]["content"]
    assert [set(delta) for delta in deltas[1:]] == [{"content"}] * 3
    assert len(chunks) == 4
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all("usage" not in chunk for chunk in chunks)


@in_loop
async def test_every_token_has_an_event_and_no_character_is_split() -> None:
    async with serving(ScriptedEngine()) as served:
        response = await served.http.post("/v1/completions", json={"prompt": "Hi", "stream": True, "max_tokens": 60})
    *chunks, _ = events(response.text)
    texts = [chunk["choices"][0]["text"] for chunk in chunks]
    assert len(texts) == 60 and not any("\ufffd" in text for text in texts)
    assert "" in texts, "a character of several tokens comes with its last one"
    assert "".join(texts) == TOKENIZER.decode(TOKENIZER.encode(ANSWER, False)[:60])


@in_loop
async def test_nothing_with_choices_is_sent_before_the_first_token() -> None:
    engine = ScriptedEngine("abc" * 40)
    engine.hold()
    async with (
        serving(engine) as served,
        served.http.stream("POST", "/v1/chat/completions", json={**CHAT, "max_tokens": 2}) as response,
    ):
        # The status is here while the prompt still waits.
        assert response.status_code == 200
        assert engine.stats().generation_tokens == 0
        lines = response.aiter_lines()
        engine.release()
        first = json.loads((await anext(lines)).removeprefix("data: "))
        assert first["choices"][0]["delta"]["content"] and engine.stats().generation_tokens == 1
        engine.release()
        rest = [line async for line in lines if line]
    assert rest[-1] == "data: [DONE]"


@in_loop
async def test_usage_comes_in_an_event_without_choices() -> None:
    body = {**CHAT, "max_tokens": 3, "stream_options": {"include_usage": True}}
    async with serving(ScriptedEngine("abc" * 40)) as served:
        response = await served.http.post("/v1/chat/completions", json=body)
    *chunks, usage, done = events(response.text)
    assert done == "[DONE]"
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == 3
    assert [chunk["usage"] for chunk in chunks] == [None] * 3


@in_loop
async def test_the_end_token_ends_the_choice_with_an_empty_delta() -> None:
    async with serving(ScriptedEngine("ab", ends=True)) as served:
        response = await served.http.post("/v1/chat/completions", json={**CHAT, "max_tokens": 9})
    *chunks, _ = events(response.text)
    last = chunks[-1]["choices"][0]
    assert last["delta"] == {} and last["finish_reason"] == "stop" and last["stop_reason"] is None


@in_loop
async def test_a_failure_is_an_error_event_after_the_usage_so_far() -> None:
    engine = ScriptedEngine("abc" * 40)
    engine.fail_after = 2
    body = {"prompt": "Hi", "stream": True, "max_tokens": 9, "stream_options": {"include_usage": True}}
    async with serving(engine) as served:
        response = await served.http.post("/v1/completions", json=body)
    *chunks, usage, error, done = events(response.text)
    assert len(chunks) == 2 and usage["usage"]["completion_tokens"] == 2 and done == "[DONE]"
    assert error["error"]["code"] == "engine_error"


def test_characters_that_split_lines_elsewhere_are_escaped() -> None:
    text = "a\u2028b\x85c\u2029d\r\ne"
    frame = sse.event({"text": text})
    assert frame.startswith(b"data: ") and frame.endswith(b"\n\n")
    assert len(frame.decode().strip().splitlines()) == 1
    assert json.loads(frame[6:]) == {"text": text}


@in_loop
async def test_a_client_that_stops_reading_is_cut_and_its_blocks_are_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "SEND_STALL_S", 0.01)
    engine = ScriptedEngine()
    body = json.dumps({"prompt": "Hi", "stream": True, "max_tokens": 50}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "query_string": b"", "headers": headers}
    incoming: asyncio.Queue[dict[str, object]] = asyncio.Queue()
    incoming.put_nowait({"type": "http.request", "body": body, "more_body": False})
    written = 0

    async def send(message: dict[str, object]) -> None:
        nonlocal written
        written += 1
        if written > 3:  # the client's buffers are full from here on
            await asyncio.Event().wait()

    await create_app(engine, ServerOptions())(scope, incoming.get, send)
    assert written == 4
    assert engine.stats().kv_blocks_free == engine.stats().kv_blocks_total
