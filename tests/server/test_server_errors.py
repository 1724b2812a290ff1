"""Bad input: one clear sentence in OpenAI's shape, never a 500 and never FastAPI's 422."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from fake_engine import CONFIG, TOKENIZER, ScriptedEngine
from pydantic import BaseModel
from server_harness import error_of, in_loop, serving

from headrace.server.app import ROUTES
from headrace.server.bodies import ChatBody, CompletionBody, TokenizeBody
from headrace.server.fields import NO_EFFECT, REFUSED
from headrace.server.guard import OPEN_PATHS
from headrace.server.options import ServerOptions

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
USER = [{"role": "user", "content": "Hi"}]
HUGE = 2**63

# (field, value): every numeric or size field at a bound, beyond it, far beyond it, and as the wrong type
BAD_VALUES: list[tuple[str, Any]] = [
    *[("n", value) for value in (0, 129, HUGE, -1, "2", True, 1.5, [1])],
    *[("max_tokens", value) for value in (-1, 0, HUGE, "16", True, 1.5, 257)],
    *[("min_tokens", value) for value in (-1, HUGE, 17)],
    *[("temperature", value) for value in (-0.1, 101, HUGE, "hot", True, [])],
    *[("top_p", value) for value in (0, 1.1, -1, "x")],
    *[("top_k", value) for value in (-2, HUGE, 0.5)],
    *[("min_p", value) for value in (-0.1, 1.1)],
    *[("presence_penalty", value) for value in (-2.1, 2.1)],
    *[("frequency_penalty", value) for value in (-2.1, 2.1)],
    *[("repetition_penalty", value) for value in (0, -1, 101)],
    *[("seed", value) for value in (HUGE, -HUGE - 1, "7", 0.5)],
    *[("stop", value) for value in ("", [""], ["a"] * 65, ["x" * 1025], 3, [3], {"a": 1})],
    *[("stop_token_ids", value) for value in ([-1], [HUGE], [100_000], ["a"], [1] * 129, 3)],
    *[("ignore_eos", value) for value in ("yes", 1)],
    *[("stream", value) for value in ("yes", 1)],
    *[("stream_options", value) for value in ({"include_usage": True}, {"surprise": 1}, 3)],
    *[("priority", value) for value in (1, HUGE)],
    *[("cache_salt", value) for value in ("", "x" * 513, 3)],
    *[("logit_bias", value) for value in ({"5": 100.1}, {"5": "x"}, {"-1": 1}, {"x": 1}, {"99999": 1}, [5])],
    ("logit_bias", {str(token): 1 for token in range(1025)}),
    *[("allowed_token_ids", value) for value in ([], [-1], [99_999], [HUGE], ["5"], 5, [5] * 65_537)],
    *[("bad_words", value) for value in ([""], ["x"] * 129, ["x" * 257], "x", [5])],
    *[("prompt_logprobs", value) for value in (-1, 21, HUGE, True, "1")],
    ("return_tokens_as_token_ids", 1),
    *[("model", value) for value in (3, "x" * 513)],
]
BAD_COMPLETIONS: list[tuple[str, Any]] = [
    *[("prompt", value) for value in (3, [], {}, [[]], [1, "a"], [-1], [HUGE], [1.5], [True], "", None)],
    ("prompt", ["x"] * 2049),
    *[("logprobs", value) for value in (-1, 21, HUGE, True)],
    ("echo", "yes"),
]
ROUTES_WITH_BODIES: list[tuple[str, type[BaseModel], dict[str, Any]]] = [
    (CHAT, ChatBody, {"messages": USER, "max_tokens": 1}),
    (COMPLETIONS, CompletionBody, {"prompt": "Hi", "max_tokens": 1}),
    ("/tokenize", TokenizeBody, {"prompt": "Hi"}),
]
TOOL = {"type": "function", "function": {"name": "f"}}
BAD_CHATS: list[tuple[str, Any]] = [
    *[("messages", value) for value in ([], 3, "hi", [3], [{}], [{"role": "king", "content": "x"}], None)],
    ("messages", [{"role": "user"}]),
    ("messages", [{"role": "user", "content": None}]),
    ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/x"}}]}]),
    ("messages", [{"role": "user", "content": [{"type": "text"}]}]),
    ("messages", [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}]),
    ("messages", [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}]),
    ("messages", [{"role": "user", "content": "x", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}]),
    *[("tools", value) for value in (3, [3], [{"type": "function"}], [TOOL, TOOL], [TOOL] * 129)],
    ("tools", [{"type": "function", "function": {"name": "a b"}}]),
    ("tools", [{"type": "function", "function": {"name": "f", "parameters": [1]}}]),
    *[("tool_choice", value) for value in ("required", "always", 3, {"type": "function", "function": {"name": "f"}})],
    ("parallel_tool_calls", "no"),
    ("include_reasoning", "no"),
    ("messages", USER * 2049),
    *[("top_logprobs", value) for value in (21, -1, 3)],
    ("max_completion_tokens", HUGE),
    ("echo", True),
]


@in_loop
async def test_every_bad_value_is_a_400_that_names_its_field() -> None:
    async with serving(ScriptedEngine()) as served:
        for path, required, cases in (
            (COMPLETIONS, {"prompt": "Hi"}, BAD_VALUES + BAD_COMPLETIONS),
            (CHAT, {"messages": USER, "max_tokens": 16}, BAD_VALUES + BAD_CHATS),
        ):
            for field, value in cases:
                response = await served.http.post(path, json={**required, field: value})
                expected = 404 if (field, value) == ("model", "unknown") else 400
                assert response.status_code == expected, (path, field, str(value)[:60], response.text)
                error = error_of(response)
                assert field in f"{error['param']} {error['message']}", (field, error)
        assert (await served.http.post(COMPLETIONS, json={"prompt": "Hi"})).status_code == 200


@in_loop
async def test_an_unsupported_field_is_refused_by_name_unless_it_is_off() -> None:
    async with serving(ScriptedEngine()) as served:
        for field, (off, _) in REFUSED.items():
            # A field may be served by one route and refused by another.
            path, body = next((path, body) for path, kind, body in ROUTES_WITH_BODIES if field not in kind.model_fields)
            response = await served.http.post(path, json={**body, field: {"type": "surprise"}})
            assert response.status_code == 400, field
            error = error_of(response)
            assert error["param"] == field and field in error["message"] and error["code"] == "unsupported_parameter"
            for value in (*off, None):
                response = await served.http.post(path, json={**body, field: value})
                assert response.status_code == 200, (field, value, response.text)


@in_loop
async def test_fields_that_change_nothing_are_accepted() -> None:
    engine = ScriptedEngine()
    async with serving(engine) as served:
        body = {"prompt": "Hi", "max_tokens": 1}
        plain = await served.http.post(COMPLETIONS, json=body)
        with_them = await served.http.post(COMPLETIONS, json={**body, **dict.fromkeys(NO_EFFECT, "x")})
    assert plain.status_code == with_them.status_code == 200
    assert engine.requests[0].params == engine.requests[1].params


@in_loop
async def test_an_unknown_field_is_refused_with_the_nearest_name() -> None:
    async with serving(ScriptedEngine()) as served:
        response = await served.http.post(COMPLETIONS, json={"prompt": "Hi", "temprature": 0})
    error = error_of(response)
    assert response.status_code == 400
    assert error["param"] == "temprature" and "`temperature`" in error["message"]


@in_loop
async def test_bytes_that_are_no_json_object_are_a_400() -> None:
    bodies = [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"\xff\xfe",
        b'{"prompt": "\xc3"}',
        b'{"prompt": "\\ud800"}',
        b'{"\\ud800": 1}',
        b'{"prompt": "Hi", "temperature": NaN}',
        b'{"prompt": "Hi", "temperature": Infinity}',
        b'{"prompt": "Hi", "temperature": -Infinity}',
        b'{"prompt": "Hi", "temperature": 1e999}',
        b'{"prompt": "Hi", "n": ' + b"9" * 5000 + b"}",
        b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"x":' * 10_000 + b"1" + b"}" * 10_000,
    ]
    async with serving(ScriptedEngine()) as served:
        for path in (COMPLETIONS, CHAT, "/tokenize", "/detokenize"):
            for body in bodies:
                response = await served.http.post(path, content=body, headers={"Content-Type": "application/json"})
                assert response.status_code == 400, (path, body[:40], response.text)
                error_of(response)
        wrong_type = await served.http.post(COMPLETIONS, content=b"prompt=Hi")
        assert wrong_type.status_code == 415 and error_of(wrong_type)


@in_loop
async def test_a_body_over_the_limit_is_a_413_with_or_without_its_length() -> None:
    async def chunks() -> Any:
        yield b'{"prompt": "'
        for _ in range(10):
            yield b"x" * 200
        yield b'"}'

    headers = {"Content-Type": "application/json"}
    async with serving(ScriptedEngine(), ServerOptions(max_body_bytes=1000)) as served:
        whole = await served.http.post(COMPLETIONS, json={"prompt": "x" * 2000})
        chunked = await served.http.post(COMPLETIONS, content=chunks(), headers=headers)
        fine = await served.http.post(COMPLETIONS, json={"prompt": "x" * 100})
    assert (whole.status_code, chunked.status_code, fine.status_code) == (413, 413, 200)
    assert "1000 bytes" in error_of(whole)["message"]


@in_loop
async def test_a_full_queue_is_a_429_with_retry_after() -> None:
    engine = ScriptedEngine()
    engine.hold()
    # The scripted engine runs everything at once, so a limit of its own stands for the engine's queue.
    engine.max_waiting = 2
    async with serving(engine) as served:
        waiting = asyncio.create_task(served.http.post(COMPLETIONS, json={"prompt": "Hi", "n": 2}))
        await engine.until(lambda stats: stats.num_running == 2)
        for body in ({"prompt": "Hi"}, {"prompt": "Hi", "stream": True}):
            response = await served.http.post(COMPLETIONS, json=body)
            assert response.status_code == 429 and response.headers["retry-after"] == "1"
            assert error_of(response)["code"] == "queue_full"
        engine.release(100)
        assert (await waiting).status_code == 200


@in_loop
async def test_the_server_counts_what_waits_itself() -> None:
    class Waiting(ScriptedEngine):
        def stats(self) -> Any:
            return replace(super().stats(), num_running=0)

    engine = Waiting(config=replace(CONFIG, max_num_queued_reqs=2))
    engine.hold()
    async with serving(engine) as served:
        first = asyncio.create_task(served.http.post(COMPLETIONS, json={"prompt": "Hi", "n": 2}))
        while len(engine.requests) < 2:
            await asyncio.sleep(0)
        refused = await served.http.post(COMPLETIONS, json={"prompt": "Hi"})
        never = await served.http.post(COMPLETIONS, json={"prompt": "Hi", "n": 3})
        engine.release(100)
        await first
    assert refused.status_code == 429 and "limit is 2" in error_of(refused)["message"]
    assert never.status_code in (400, 429)


@in_loop
async def test_every_route_but_health_and_version_needs_the_key() -> None:
    options = ServerOptions(api_keys=("secret-key", "schlüssel"))
    bearer = b"Bearer secret-key"
    wrong: list[list[tuple[bytes, bytes]]] = [
        [],
        [(b"authorization", b"Bearer wrong")],
        [(b"authorization", b"Bearer secret-ke")],
        [(b"authorization", b"Bearer secret-key-and-more")],
        [(b"authorization", b"Basic secret-key")],
        [(b"authorization", b"secret-key")],
        [(b"authorization", "Bearer clé-日本".encode())],
        [(b"authorization", b"Bearer \xff\xfe")],
        [(b"authorization", bearer), (b"authorization", b"Bearer other")],
        [(b"host", b"a/health?x="), (b"authorization", b"Bearer wrong")],
    ]
    async with serving(ScriptedEngine(), options) as served:
        for method, path, _ in [*ROUTES, ("GET", "/openapi.json", None), ("GET", "/nothing", None)]:
            path = path.replace("{model_id:path}", "scripted")
            for headers in wrong:
                response = await served.http.request(method, path, headers=headers)
                if path in OPEN_PATHS:
                    assert response.status_code == 200
                else:
                    assert response.status_code == 401, (path, headers)
                    assert error_of(response)["code"] == "invalid_api_key"
        for path in ("//health", "/health/../metrics", "/%68ealth/..%2fmetrics", "/metrics?/health", "/HEALTH"):
            assert (await served.http.get(path)).status_code == 401, path
        for key in options.api_keys:
            headers = {"Authorization": f"Bearer {key}".encode()}
            assert (await served.http.get("/v1/models", headers=headers)).status_code == 200


@in_loop
async def test_before_the_model_is_loaded_everything_says_so() -> None:
    async with serving(None) as served:
        health = await served.http.get("/health")
        assert health.status_code == 503 and error_of(health)["code"] == "loading"
        for path in ("/v1/models", "/metrics", "/health/ready", "/ping"):
            assert (await served.http.get(path)).status_code == 503
        assert (await served.http.post(COMPLETIONS, json={"prompt": "Hi"})).status_code == 503
        assert (await served.http.get("/health/live")).status_code == 200
        assert (await served.http.get("/version")).status_code == 200


@in_loop
async def test_health_means_progress() -> None:
    engine = ScriptedEngine()
    async with serving(engine) as served:
        assert (await served.http.get("/health")).status_code == 200
        engine.healthy = (False, "no step ended for 12 s")
        for path in ("/health", "/health/live", "/ping"):
            response = await served.http.get(path)
            assert response.status_code == 503 and "12 s" in error_of(response)["message"]


@in_loop
async def test_unknown_paths_and_methods_keep_the_shape() -> None:
    async with serving(ScriptedEngine()) as served:
        assert error_of(await served.http.get("/v2/nothing"))["type"] == "not_found_error"
        response = await served.http.get(COMPLETIONS)
        assert response.status_code == 405 and error_of(response)


@in_loop
async def test_priority_is_taken_where_the_scheduler_reads_it() -> None:
    engine = ScriptedEngine(config=replace(CONFIG, scheduling_policy="priority"))
    async with serving(engine) as served:
        await served.http.post(COMPLETIONS, json={"prompt": "Hi", "priority": -3})
    assert engine.requests[0].priority == -3


@in_loop
async def test_tokenize_and_detokenize_are_inverse_and_count() -> None:
    async with serving(ScriptedEngine()) as served:
        text = "The wheel turns: über 水 🌊"
        tokens = (await served.http.post("/tokenize", json={"prompt": text, "return_token_strs": True})).json()
        back = (await served.http.post("/detokenize", json={"tokens": tokens["tokens"]})).json()
        chat = (await served.http.post("/tokenize", json={"model": "scripted", "messages": USER})).json()
        both = await served.http.post("/tokenize", json={"prompt": "x", "messages": USER})
        wrong = await served.http.post("/detokenize", json={"tokens": [10**6]})
    assert back == {"prompt": text}
    assert tokens["count"] == len(tokens["tokens"]) == len(tokens["token_strs"])
    assert tokens["max_model_len"] == 256
    assert TOKENIZER.decode(chat["tokens"], False) == "<|user|>Hi<|end|><|assistant|>"
    assert both.status_code == 400 and wrong.status_code == 400
    assert "out of vocabulary" in error_of(wrong)["message"]


@in_loop
async def test_content_parts_become_lines_of_one_text() -> None:
    engine = ScriptedEngine()
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    async with serving(engine) as served:
        await served.http.post(CHAT, json={"messages": [{"role": "user", "content": parts}], "max_tokens": 1})
    assert TOKENIZER.decode(engine.requests[0].prompt_token_ids, False).startswith("<|user|>one\ntwo<|end|>")
