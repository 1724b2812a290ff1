"""Tool calls and reasoning over HTTP: the official client, scripted answers, and grammars on the real engine."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from fake_engine import ScriptedEngine
from server_harness import error_of, events, in_loop, serving

from headrace.server.options import ServerOptions

HERMES = ServerOptions(tool_call_parser="hermes", enable_auto_tool_choice=True)
LLAMA = ServerOptions(tool_call_parser="llama3_json", enable_auto_tool_choice=True)
USER: list[Any] = [{"role": "user", "content": "Weather?"}]
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Oslo"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "get_weather", "description": "Weather", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "get_time"}},
]
CALL = '{"name": "get_weather", "arguments": {"city": "Paris", "days": 2}}'
TEXT = f"Let me look.\n<tool_call>\n{CALL}\n</tool_call>\n<tool_call>\n" + CALL.replace("2", "3") + "\n</tool_call>"
ASK: dict[str, Any] = {"model": "scripted", "messages": USER}
CHAT = "/v1/chat/completions"


def calls_of(message: Any) -> list[tuple[str, dict[str, Any]]]:
    return [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or []]


WANTED = [("get_weather", {"city": "Paris", "days": 2}), ("get_weather", {"city": "Paris", "days": 3})]


@in_loop
async def test_calls_of_the_official_client_whole_and_streamed() -> None:
    async with serving(ScriptedEngine(TEXT, ends=True), HERMES) as served:
        whole = (await served.openai.chat.completions.create(**ASK, tools=TOOLS)).choices[0]
        stream = await served.openai.chat.completions.create(**ASK, tools=TOOLS, stream=True)
        chunks = [chunk.choices[0] async for chunk in stream]
        # The client's own accumulator for streams of tool calls:
        async with served.openai.chat.completions.stream(**ASK, tools=TOOLS) as helper:
            final = await helper.get_final_completion()
    assert whole.message.content == "Let me look.\n"
    assert calls_of(whole.message) == WANTED == calls_of(final.choices[0].message)
    assert whole.finish_reason == chunks[-1].finish_reason == "tool_calls"
    assert len({call.id for call in whole.message.tool_calls}) == 2
    deltas = [call for chunk in chunks for call in chunk.delta.tool_calls or []]
    named = [call for call in deltas if call.function.name]
    assert [(call.index, call.function.name) for call in named] == [(0, "get_weather"), (1, "get_weather")]
    assert all(call.id and call.type == "function" for call in named)
    assert len(deltas) > 4, "arguments come in pieces"
    assert "".join(chunk.delta.content or "" for chunk in chunks) == "Let me look.\n"
    assert [chunk.delta.role for chunk in chunks] == ["assistant"] + [None] * (len(chunks) - 1)
    for chunk in chunks[:-1]:
        assert chunk.delta.content or chunk.delta.tool_calls, "no chunk is empty but the last"


@in_loop
async def test_llama_calls_and_answers() -> None:
    for text, calls, content in (
        (CALL.replace("arguments", "parameters"), WANTED[:1], None),
        ('{"temperature": 3}', [], '{"temperature": 3}'),
        ("Sunny.", [], "Sunny."),
    ):
        async with serving(ScriptedEngine(text, ends=True), LLAMA) as served:
            choice = (await served.openai.chat.completions.create(**ASK, tools=TOOLS)).choices[0]
        assert calls_of(choice.message) == calls
        assert choice.message.content == content
        assert choice.finish_reason == ("tool_calls" if calls else "stop")


@in_loop
async def test_tool_choice_none_and_parallel_calls() -> None:
    async with serving(ScriptedEngine(TEXT, ends=True), HERMES) as served:
        plain = (await served.openai.chat.completions.create(**ASK, tools=TOOLS, tool_choice="none")).choices[0]
        single = (await served.openai.chat.completions.create(**ASK, tools=TOOLS, parallel_tool_calls=False)).choices[0]
    assert plain.message.content == TEXT and not plain.message.tool_calls and plain.finish_reason == "stop"
    assert calls_of(single.message) == WANTED[:1]


@in_loop
async def test_a_call_that_the_length_cuts_stays_a_length() -> None:
    engine = ScriptedEngine(TEXT, ends=True)
    upto = len(engine.tokenizer.encode(TEXT[: TEXT.index("Paris")], False))
    async with serving(engine, HERMES) as served:
        choice = (await served.openai.chat.completions.create(**ASK, tools=TOOLS, max_tokens=upto)).choices[0]
    assert choice.finish_reason == "length"
    assert choice.message.tool_calls[0].function.name == "get_weather"


@in_loop
async def test_logprobs_of_held_tokens_come_with_the_text() -> None:
    async with serving(ScriptedEngine("<tool_pot> and tea", ends=True), HERMES) as served:
        body = {"messages": USER, "tools": TOOLS, "logprobs": True, "stream": True, "max_tokens": 40}
        chunks = [e["choices"][0] for e in events((await served.http.post(CHAT, json=body)).text) if e != "[DONE]"]
        whole = (await served.http.post(CHAT, json={**body, "stream": False})).json()["choices"][0]
    told = [item["token"] for chunk in chunks for item in (chunk["logprobs"] or {"content": []})["content"]]
    assert told == [item["token"] for item in whole["logprobs"]["content"]]
    assert "".join(chunk["delta"].get("content", "") for chunk in chunks) == "<tool_pot> and tea"


@in_loop
async def test_reasoning_is_split_off() -> None:
    text = "<think>\nIt rains.\n</think>\n\nTake a coat."
    async with serving(ScriptedEngine(text, ends=True), ServerOptions(reasoning_parser="qwen3")) as served:
        whole = (await served.openai.chat.completions.create(**ASK)).choices[0].message
        stream = await served.openai.chat.completions.create(**ASK, stream=True)
        deltas = [chunk.choices[0].delta async for chunk in stream]
        hidden = (await served.http.post(CHAT, json={"messages": USER, "include_reasoning": False})).json()
    reasoning, answer = "\nIt rains.\n", "\n\nTake a coat."
    assert whole.content == answer and whole.model_extra["reasoning_content"] == reasoning
    assert whole.model_extra["reasoning"] == reasoning
    assert "".join((delta.model_extra or {}).get("reasoning_content", "") for delta in deltas) == reasoning
    assert "".join(delta.content or "" for delta in deltas) == answer
    message = hidden["choices"][0]["message"]
    assert message["content"] == answer and "reasoning_content" not in message


@in_loop
async def test_deepseek_reasons_from_the_first_token() -> None:
    options = ServerOptions(reasoning_parser="deepseek_r1")
    async with serving(ScriptedEngine("Hm.</think>Yes.", ends=True), options) as served:
        message = (await served.openai.chat.completions.create(**ASK)).choices[0].message
    assert (message.model_extra["reasoning_content"], message.content) == ("Hm.", "Yes.")


@in_loop
async def test_a_conversation_with_calls_and_results_reaches_the_template() -> None:
    seen: list[Any] = []
    engine = ScriptedEngine("ok", ends=True)
    render = engine.tokenizer.render_chat
    engine.tokenizer.render_chat = lambda *args, **more: seen.append((args, more)) or render(*args)  # type: ignore
    call = {"id": "c1", "type": "function", "function": {"name": "get_time", "arguments": '{"zone": "x"}'}}
    messages = [
        *USER,
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm"},
        {"role": "tool", "tool_call_id": "c1", "content": "noon"},
    ]
    try:
        async with serving(engine, HERMES) as served:
            await served.openai.chat.completions.create(model="scripted", messages=messages, tools=TOOLS)
    finally:
        del engine.tokenizer.render_chat
    (_, assistant, tool), *_ = seen[0][0]
    assert assistant["tool_calls"][0]["function"]["arguments"] == {"zone": "x"}
    assert assistant["reasoning_content"] == "hm" and assistant["content"] == ""
    assert tool == {"role": "tool", "content": "noon", "tool_call_id": "c1"}
    assert seen[0][1]["tools"] == TOOLS


@in_loop
async def test_what_the_server_was_not_started_for_is_refused() -> None:
    async with serving(ScriptedEngine()) as served:
        with pytest.raises(openai.BadRequestError, match="--enable-auto-tool-choice"):
            await served.openai.chat.completions.create(**ASK, tools=TOOLS)
        response = await served.http.post(
            CHAT, json={"messages": USER, "tools": TOOLS, "tool_choice": "required", "guided_regex": "a"}
        )
        assert "guided_regex" in error_of(response)["message"]
    engine = ScriptedEngine()
    engine.tokenizer.read_by_template = frozenset()
    try:
        async with serving(engine, HERMES) as served:
            with pytest.raises(openai.BadRequestError, match="template"):
                await served.openai.chat.completions.create(**ASK, tools=TOOLS)
    finally:
        del engine.tokenizer.read_by_template
