"""Structured output over HTTP: every field that asks for it, with the official client and the real engine."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import openai
import pytest

pytest.importorskip("torch")

from real_engine import MODEL, real
from server_harness import error_of, in_loop

from headrace.server.options import ServerOptions

USER = [{"role": "user", "content": "Hi"}]
SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["ok", "n"],
    "additionalProperties": False,
}
ASK = {"model": MODEL, "messages": USER, "max_tokens": 300}


@in_loop
async def test_a_json_schema_with_the_official_client(model_directory: Path) -> None:
    schema = {"name": "answer", "schema": SCHEMA, "strict": True}
    async with real(model_directory) as (_, served):
        whole = await served.openai.chat.completions.create(
            **ASK, n=3, seed=1, response_format={"type": "json_schema", "json_schema": schema}
        )
        stream = await served.openai.chat.completions.create(
            **ASK, seed=1, stream=True, response_format={"type": "json_schema", "json_schema": schema}
        )
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    for choice in whole.choices:
        value = json.loads(choice.message.content)
        assert set(value) == {"ok", "n"} and 0 <= value["n"] <= 99
        assert choice.finish_reason == "stop"
    assert text == whole.choices[0].message.content


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"structured_outputs": {"regex": "[ab]{3}-\\d"}}, r"[ab]{3}-\d"),
        ({"structured_outputs": {"choice": ["left", "right"]}}, "left|right"),
        ({"structured_outputs": {"json": {"enum": [1, "x"]}}}, r'\s*(1|"x")\s*'),
        ({"structured_outputs": {"json": '{"const": 7}'}}, r"\s*7\s*"),
        ({"structured_outputs": {"grammar": 'root ::= "up" | "down"'}}, "up|down"),
        ({"guided_json": {"const": 7}}, r"\s*7\s*"),
        ({"guided_regex": "x{4}"}, "x{4}"),
        ({"guided_choice": ["left", "right"]}, "left|right"),
        ({"guided_grammar": 'start: "up" | "down"'}, "up|down"),
        ({"response_format": {"type": "text"}}, r"(?s).*"),
    ],
    ids=str,
)
def test_each_field_is_followed(model_directory: Path, fields: dict[str, Any], pattern: str) -> None:
    @in_loop
    async def check() -> None:
        async with real(model_directory) as (_, served):
            body = {"prompt": "Water", "max_tokens": 60, "temperature": 1, "seed": 3, **fields}
            answer = (await served.http.post("/v1/completions", json=body)).json()["choices"][0]
        assert re.fullmatch(pattern, answer["text"]), answer

    check()


@in_loop
async def test_json_object_starts_as_an_object(model_directory: Path) -> None:
    """A random model may never close it, so the end is not asked for."""
    async with real(model_directory) as (_, served):
        first = await served.openai.chat.completions.create(
            **{**ASK, "max_tokens": 20}, response_format={"type": "json_object"}
        )
        second = await served.http.post(
            "/v1/completions", json={"prompt": "x", "max_tokens": 9, "structured_outputs": {"json_object": True}}
        )
    assert first.choices[0].message.content.lstrip().startswith("{")
    assert second.json()["choices"][0]["text"].lstrip().startswith("{")


TAG = {"begin": "~age(", "schema": {"type": "integer", "minimum": 10, "maximum": 99}, "end": ")"}
TAGGED: dict[str, Any] = {"type": "structural_tag", "structures": [TAG], "triggers": ["~"]}


@in_loop
async def test_what_follows_a_trigger_has_its_form(model_directory: Path) -> None:
    async with real(model_directory) as (engine, served):
        (trigger,) = engine.tokenizer.encode("~", add_special_tokens=False)
        fields = {"response_format": TAGGED, "logit_bias": {str(trigger): 50}, "temperature": 0, "max_tokens": 40}
        answer = await served.http.post("/v1/completions", json={"prompt": "x", **fields})
    assert re.match(r"~age\([1-9][0-9]\)", answer.json()["choices"][0]["text"]), answer.text


BAD: list[tuple[dict[str, Any], str]] = [
    ({"guided_regex": "("}, "guided_regex"),
    ({"guided_regex": "(?=a)b"}, "guided_regex"),
    ({"guided_regex": "a{1000000}"}, "guided_regex"),
    ({"guided_regex": "a" * 65_537}, "guided_regex"),
    ({"guided_choice": []}, "guided_choice"),
    ({"guided_choice": ["x"] * 513}, "guided_choice"),
    ({"guided_choice": [""]}, "guided_choice"),
    ({"guided_grammar": "start: nope"}, "guided_grammar"),
    ({"guided_json": "{"}, "guided_json"),
    ({"guided_json": {"type": "nope"}}, "guided_json"),
    ({"guided_json": {"const": 1}, "guided_regex": "a"}, "guided_regex"),
    ({"structured_outputs": {}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
    ({"structured_outputs": {"structural_tag": "{}"}}, "structural_tag"),
    ({"structured_outputs": {"structural_tag": '{"triggers": ["<f"], "structures": []}'}}, "structural_tag"),
    ({"structured_outputs": {"structural_tag": '{"format": {"type": "tag"}}'}}, "triggered_tags"),
    ({"response_format": {"type": "structural_tag", "triggers": ["<"]}}, "structures"),
    ({"response_format": {**TAGGED, "triggers": ["@"]}}, "trigger"),
    ({"response_format": {**TAGGED, "structures": [{**TAG, "schema": {"type": "nope"}}]}}, "response_format"),
    ({"structured_outputs": {"json_object": False}}, "json_object"),
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    ({"response_format": {"type": "structural_tag"}}, "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": [1]}}}, "schema"),
    ({"guided_choice": ["a"], "ignore_eos": True}, "ignore_eos"),
    ({"guided_choice": ["a"], "min_tokens": 3}, "min_tokens"),
    ({"guided_choice": ["a"], "allowed_token_ids": [5]}, "allowed_token_ids"),
]


@in_loop
async def test_what_cannot_be_followed_is_a_400_that_names_the_field(model_directory: Path) -> None:
    async with real(model_directory) as (_, served):
        for fields, name in BAD:
            response = await served.http.post("/v1/completions", json={"prompt": "x", "max_tokens": 4, **fields})
            assert response.status_code == 400, (fields, response.text[:200])
            error = error_of(response)
            assert name in f"{error['param']} {error['message']}", (fields, error)
        with pytest.raises(openai.BadRequestError, match="response_format"):
            await served.openai.chat.completions.create(
                **ASK,
                response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nope"}}},
            )


TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"$ref": "#/$defs/City"},
                    "days": {"type": "integer", "minimum": 1, "maximum": 9},
                },
                "required": ["city", "days"],
                "additionalProperties": False,
                "$defs": {"City": {"enum": ["Paris", "Oslo"]}},
            },
        },
    }
]


def _calls(message: Any) -> list[tuple[str, dict[str, Any]]]:
    return [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or []]


TEMPLATE = (
    "{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("templates") / "tools.jinja"
    path.write_text(TEMPLATE)
    return str(path)


def test_required_and_named_calls_follow_the_parameters(model_directory: Path, template: str) -> None:
    @in_loop
    async def check() -> None:
        async with real(model_directory, chat_template=template) as (_, served):
            ask = {"model": MODEL, "messages": USER, "tools": TOOLS, "max_tokens": 600, "temperature": 1}
            for seed in range(2):
                required = (
                    await served.openai.chat.completions.create(**ask, tool_choice="required", seed=seed)
                ).choices[0]
                single = await served.openai.chat.completions.create(
                    **ask, tool_choice="required", parallel_tool_calls=False, seed=seed, stream=True
                )
                pieces = [call async for chunk in single for call in chunk.choices[0].delta.tool_calls or []]
                choice = {"type": "function", "function": {"name": "get_weather"}}
                named = (await served.openai.chat.completions.create(**ask, tool_choice=choice, seed=seed)).choices[0]
                assert required.finish_reason == named.finish_reason == "tool_calls"
                calls = _calls(required.message) + _calls(named.message)
                calls.append((pieces[0].function.name, json.loads("".join(p.function.arguments for p in pieces))))
                assert not required.message.content and not named.message.content
                for name, arguments in calls:
                    assert name == "get_weather" and arguments["city"] in ("Paris", "Oslo")
                    assert 1 <= arguments["days"] <= 9

    check()


@in_loop
async def test_a_grammar_begins_behind_the_reasoning(model_directory: Path, tmp_path: Path) -> None:
    """The template opens the reasoning; what comes before the closing mark is free, what follows it is not."""
    directory = tmp_path / MODEL
    shutil.copytree(model_directory, directory)
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    mark = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    close = len(tokenizer["model"]["vocab"])
    tokenizer["added_tokens"].append({"id": close, "content": "</think>", **mark})
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    shape = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**shape, "vocab_size": close + 1}))
    template = tmp_path / "thinking.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}\n{% endfor %}<think>\n")
    options = ServerOptions(reasoning_parser="qwen3")
    async with real(directory, options, chat_template=str(template)) as (_, served):
        # The bias makes the random model close its reasoning within some tokens.
        answer = await served.openai.chat.completions.create(
            **ASK, seed=2, logit_bias={str(close): 5}, extra_body={"guided_regex": "[ab]{3}"}
        )
    message = answer.choices[0].message
    assert re.fullmatch("[ab]{3}", message.content), message
    assert answer.usage.completion_tokens > 4
    assert message.model_extra["reasoning"]
