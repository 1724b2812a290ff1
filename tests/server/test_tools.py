"""Tool calls and reasoning found in text: the same parts wherever the text is cut, and nothing is lost."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.server.reasoning import ReasoningSplitter
from headrace.server.tools import HermesParser, JsonCallsParser, NamedCall, ToolParser

Calls = list[tuple[str, str]]
WEATHER = '{"name": "get_weather", "arguments": {"city": "Paris \\"<x>\\" {", "days": [1, 2]}}'
ARGS = '{"city": "Paris \\"<x>\\" {", "days": [1, 2]}'


def read(parser: ToolParser, pieces: list[str]) -> tuple[str, Calls]:
    content, names, arguments = "", dict[int, str](), dict[int, str]()
    for part, deltas in [*(parser.push(piece) for piece in pieces), parser.flush()]:
        content += part
        for delta in deltas:
            assert (delta.name is not None) == (delta.index not in names), "the name comes once, and first"
            if delta.name is not None:
                names[delta.index], arguments[delta.index] = delta.name, ""
            arguments[delta.index] += delta.arguments
    assert list(names) == list(range(len(names)))
    return content, [(names[index], arguments[index]) for index in names]


def cuts(text: str) -> list[list[str]]:
    """The text whole, cut once at every place, and character by character."""
    return [[text], *([text[:at], text[at:]] for at in range(1, len(text))), list(text)]


HERMES: list[tuple[str, str, Calls]] = [
    ("plain text, 1 < 2", "plain text, 1 < 2", []),
    (f"<tool_call>\n{WEATHER}\n</tool_call>", "", [("get_weather", ARGS)]),
    (f"Let me see. <tool_call>{WEATHER}</tool_call>\n", "Let me see. ", [("get_weather", ARGS)]),
    (
        f'<tool_call>{WEATHER}</tool_call>\n<tool_call>{{"arguments": {{}}, "name": "b"}}</tool_call>',
        "",
        [("get_weather", ARGS), ("b", "{}")],
    ),
    (f"<tool_call>{WEATHER}</tool_call> then <tool_call>{WEATHER}", " then ", [("get_weather", ARGS)] * 2),
    ('<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("f", '{"a": 1}')]),
    ('<tool_call>{"name": "f"}</tool_call>', "", [("f", "")]),
    ('<tool_call>{"name": "f", "arguments": null }</tool_call>', "", [("f", "null")]),
    # Cut by the length limit: what is there of a call is told, a call without a name is text.
    ('<tool_call>{"name": "f", "arguments": {"a": 1', "", [("f", '{"a": 1')]),
    ('<tool_call>{"na', '<tool_call>{"na', []),
    ("see <tool_ca", "see <tool_ca", []),
    # Models' mistakes: no closing brace, no closing mark, no JSON, no name.
    ('<tool_call>{"name": "f", "arguments": {"a": 1}</tool_call> ok', " ok", [("f", '{"a": 1}')]),
    (f"<tool_call>{WEATHER} and more", " and more", [("get_weather", ARGS)]),
    ("<tool_call>soon</tool_call>", "<tool_call>soon</tool_call>", []),
    ('<tool_call>{"arguments": {}}</tool_call>', '<tool_call>{"arguments": {}}</tool_call>', []),
    ('<tool_call>{"name": 3}</tool_call>', '<tool_call>{"name": 3}</tool_call>', []),
]
LLAMA: list[tuple[str, str, Calls]] = [
    ("plain text", "plain text", []),
    ('{"name": "f", "parameters": {"a": 1}}', "", [("f", '{"a": 1}')]),
    (' <|python_tag|>{"name": "f", "parameters": {}}', "", [("f", "{}")]),
    ('{"name": "f", "parameters": {}}; {"name": "g", "parameters": {}}', "", [("f", "{}"), ("g", "{}")]),
    ('{"answer": {"name": "f"}}', '{"answer": {"name": "f"}}', []),
    ('{"name": "Bob", "parameters": {}}', '{"name": "Bob", "parameters": {}}', []),  # no function of the request
    ('I say {"name": "f", "parameters": {}}', 'I say {"name": "f", "parameters": {}}', []),
    ('{"name": "f", "parameters": {}} done {', "done {", [("f", "{}")]),
    ("{", "{", []),
    ("<|python", "<|python", []),
    ("  ", "  ", []),
]
LIST: list[tuple[str, str, Calls]] = [
    (
        ' [{"name": "f", "parameters": {"a": 1}} ,\n {"name": "g", "parameters": {}}]',
        "",
        [("f", '{"a": 1}'), ("g", "{}")],
    ),
]
CASES: list[tuple[Callable[[], ToolParser], str, str, Calls]] = [
    *((HermesParser, *case) for case in HERMES),
    *((lambda: JsonCallsParser({"f", "g"}), *case) for case in LLAMA),
    *((lambda: JsonCallsParser({"f", "g"}, is_list=True), *case) for case in LIST),
]


@pytest.mark.parametrize(
    ("parser", "text", "content", "calls"), CASES, ids=lambda value: None if callable(value) else str(value)[:40]
)
def test_calls_are_found_wherever_the_text_is_cut(
    parser: Callable[[], ToolParser], text: str, content: str, calls: Calls
) -> None:
    for pieces in cuts(text):
        assert read(parser(), pieces) == (content, calls), pieces


def test_arguments_are_told_while_they_come() -> None:
    parser = HermesParser()
    parser.push('<tool_call>{"name": "f", "arguments": {"text": "a long')
    _, deltas = parser.push(" story")
    assert [delta.arguments for delta in deltas] == [" story"]


def test_a_named_function_gets_the_whole_text() -> None:
    for pieces in cuts('{"a": 1}'):
        assert read(NamedCall("f"), pieces) == ("", [("f", '{"a": 1}')])


@pytest.mark.parametrize(
    ("inside", "text", "expected"),
    [
        (False, "<think>why</think>because", ("why", "because")),
        (False, "\n<think>why", ("why", "")),
        (False, "no thoughts </think> here", ("", "no thoughts </think> here")),
        (False, "<thin ice", ("", "<thin ice")),
        (False, "<th", ("", "<th")),
        (True, "why</think>because", ("why", "because")),
        (True, "<think>why</think>\n\nbecause</think>", ("why", "\n\nbecause</think>")),
        (True, "1 < 2 </thi", ("1 < 2 </thi", "")),
        (True, "", ("", "")),
    ],
)
def test_reasoning_is_split_off_wherever_the_text_is_cut(inside: bool, text: str, expected: tuple[str, str]) -> None:
    for pieces in cuts(text):
        splitter = ReasoningSplitter(begins_inside=inside)
        parts = [*(splitter.push(piece) for piece in pieces), splitter.flush()]
        assert tuple("".join(side) for side in zip(*parts, strict=True)) == expected, pieces


@pytest.mark.parametrize(
    "name",
    [
        "vllm/qwen3-0.6B/chat_completion_stream_8f33c28b-tool.json",
        "vllm/qwen3-0.6B/chat_completion_stream_5627a4c6-no-tool.json",
        "sglang/qwen3-0.6B/chat_completion_stream_f121d1ca-no-tool.json",
        "vllm/deepseek-v3/chat_completion_stream_no_tool.json",
    ],
)
def test_recorded_streams_of_other_servers(shared_data: Path, name: str) -> None:
    """Chunks as they came over the wire, and what another project reads in them."""
    record = json.loads((shared_data / "sse-streams" / name).read_text())
    expected = record["expected_output"]
    expected = ast.literal_eval(expected) if isinstance(expected, str) else expected
    splitter, parser = ReasoningSplitter(begins_inside="deepseek" in name), HermesParser()
    reasoning, pieces = "", []
    for chunk in record["input_stream"]:
        thought, answer = splitter.push(chunk["data"]["choices"][0]["delta"].get("content") or "")
        reasoning += thought
        pieces.append(answer)
    thought, answer = splitter.flush()
    content, calls = read(parser, [*pieces, answer])
    assert reasoning + thought == expected["reasoning_content"]
    assert content == expected["normal_content"]
    told = [call["function"] for call in expected.get("tool_calls") or []]
    assert [(n, json.loads(a)) for n, a in calls] == [(call["name"], json.loads(call["arguments"])) for call in told]
