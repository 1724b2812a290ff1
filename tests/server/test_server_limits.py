"""Every numeric, sized and typed field of every route: at its limit, beyond it, negative, huge, NaN, of another type.

The table is derived from the description of the API, which is derived from the types that bodies are parsed with.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from body_fields import Field, Schema, example, fields
from fake_engine import ByteBpe, ScriptedEngine
from server_harness import error_of, in_loop

from headrace.server.app import create_app
from headrace.server.options import ServerOptions

FIELDS = fields()
HUGE = (2**63, -(2**63) - 1, 10**400)
OTHER_TYPES: dict[str, Any] = {
    "string": "1",
    "boolean": True,
    "number": 0.5,
    "array": [1],
    "object": {"surprise": 1},
}
# A field is wrong; a body may also be refused for its meaning: too long for the context, contradicting itself.
CALLED_WRONG = {"invalid_value", "unknown_parameter"}
# Texts as long as a body may be: bounded by --max-body-bytes, not by the schema.
UNBOUNDED_TEXTS = {
    *("prompt", "prompt.0", "messages.0.content", "messages.0.content.0.text"),
    *("messages.0.reasoning", "messages.0.reasoning_content"),
}
UNBOUNDED_LISTS = {"prompt", "prompt.0", "tokens", "messages.0.content"}
FREE_FORM = "parameters", "schema", "json", "guided_json"  # JSON schemas: checked by the grammar compiler
IS_NUMBER = {"integer", "number"}


JSON = {"Content-Type": "application/json"}


class WithGrammars(ByteBpe):
    def grammar(self, kind: str, text: str, after: str = "") -> object:
        return object()


@asynccontextmanager
async def directly() -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application without sockets: a thousand requests in the time of a hundred."""
    engine = ScriptedEngine("ab")
    engine.tokenizer = WithGrammars()
    transport = httpx.ASGITransport(create_app(engine, ServerOptions()), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as http:
        yield http


def kinds(field: Field) -> set[str]:
    """JSON types that a field takes."""
    named: set[str] = set()
    for each in field.alternatives:
        values = [each["const"]] if "const" in each else each.get("enum", [])
        if "type" not in each and not values:
            return set(OTHER_TYPES)  # anything
        named |= {each["type"]} if "type" in each else {_kind(value) for value in values}
    return named | ({"number"} if "integer" in named else set())


def _kind(value: Any) -> str:
    names = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return names.get(type(value), "null")


def beyond(field: Field) -> Iterator[Any]:
    """Values that no alternative of the field takes."""
    types = kinds(field)
    numbers = [each for each in field.alternatives if each.get("type") in IS_NUMBER]
    if numbers:
        (bounds,) = numbers
        low, high = bounds.get("minimum", bounds.get("exclusiveMinimum")), bounds["maximum"]
        yield from (high + 1, *HUGE[: 2 if high < 2**62 else 3], low - 1)
        if "exclusiveMinimum" in bounds:
            yield low
        yield from (float("nan"), float("inf"), -float("inf"))
        if bounds["type"] == "integer" and not float(low + 0.5).is_integer():  # the seed's bounds are too large for it
            yield low + 0.5
    for name, value in OTHER_TYPES.items():
        if name not in types and not (name == "number" and numbers and numbers[0]["type"] == "integer"):
            yield value
    for bounds in field.alternatives:
        if "maxLength" in bounds:
            yield "f" * (bounds["maxLength"] + 1)
        if bounds.get("minLength") and field.path not in ("prompt", "prompt.0"):
            yield ""
        if "maxItems" in bounds and "string" not in types:
            yield [_sample(bounds)] * (bounds["maxItems"] + 1)
        if "maxProperties" in bounds:
            yield {str(number): 0 for number in range(bounds["maxProperties"] + 1)}


def at(field: Field) -> Iterator[Any]:
    """Values on the border of what a field takes."""
    for bounds in field.alternatives:
        if bounds.get("type") in IS_NUMBER:
            yield bounds["maximum"]
            yield bounds.get("minimum", 5e-324)
            if bounds["type"] == "number":
                yield int(bounds["maximum"])
        if "maxLength" in bounds:
            yield "f" * bounds["maxLength"]
        if "maxItems" in bounds and field.name != "prompt":
            yield [_sample(bounds)] * bounds["maxItems"]


def _sample(bounds: Schema) -> Any:
    return example(bounds["items"])


def test_every_field_has_its_bounds() -> None:
    """What has no bound can take a server down: no number without both, no text or list of any length."""
    assert {field.route for field in FIELDS} == {"/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"}
    assert len(FIELDS) > 300
    for field in FIELDS:
        if field.path.endswith(FREE_FORM):
            continue
        for each in field.alternatives:
            where = f"{field.route} {field.path}"
            if each.get("type") in IS_NUMBER:
                assert "maximum" in each and each.keys() & {"minimum", "exclusiveMinimum"}, where
            if each.get("type") == "string" and not each.keys() & {"maxLength", "enum", "const", "pattern"}:
                assert field.path in UNBOUNDED_TEXTS, where
            if each.get("type") == "array" and "maxItems" not in each:
                assert field.path in UNBOUNDED_LISTS, where


@in_loop
async def test_a_value_beyond_its_bounds_is_a_400_that_names_its_field() -> None:
    count = 0
    async with directly() as http:
        for field in FIELDS:
            if field.path.endswith(FREE_FORM):
                continue
            for value in beyond(field):
                body = json.dumps(field.body_with(value))
                response = await http.post(field.route, content=body, headers=JSON)
                shown = (field.route, field.path, repr(value)[:60], response.text[:300])
                assert response.status_code == 400, shown
                error = error_of(response)
                if error["code"] != "invalid_json":  # NaN and numbers of hundreds of digits are no JSON to begin with
                    assert field.name in f"{error['param']} {error['message']}", shown
                count += 1
        assert (await http.post("/v1/completions", json={"prompt": "Hi"})).status_code == 200
    assert count > 1000


@in_loop
async def test_a_value_on_its_bound_is_never_called_wrong() -> None:
    async with directly() as http:
        for field in FIELDS:
            for value in at(field):
                body = json.dumps(field.body_with(value))
                response = await http.post(field.route, content=body, headers=JSON)
                shown = (field.route, field.path, repr(value)[:60], response.text[:300])
                assert response.status_code in (200, 400, 404), shown
                assert response.status_code == 200 or error_of(response)["code"] not in CALLED_WRONG, shown


@pytest.mark.parametrize("name", ["prompt", "messages", "tokens"])
def test_the_table_reaches_what_is_nested(name: str) -> None:
    paths = {field.path for field in FIELDS if field.name == name}
    assert len(paths) > 1
