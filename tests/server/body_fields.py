"""Every leaf of every request body, found in the API's own description: a new field is in it without being listed here.

A Field is one leaf with its bounds, and knows how to make a whole valid body around any value for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from headrace.server.app import create_app
from headrace.server.options import ServerOptions

Schema = dict[str, Any]
DESCRIPTION = create_app(None, ServerOptions()).openapi()
MAX_DEPTH = 8


@dataclass(frozen=True, slots=True)
class Field:
    """`path` is where the leaf is ("messages.0.content"), `alternatives` are the schemas that its value may fit."""

    route: str
    path: str
    alternatives: tuple[Schema, ...]
    body_with: Callable[[Any], Any]

    @property
    def name(self) -> str:
        """The top-level field."""
        return self.path.partition(".")[0]


def resolved(schema: Schema) -> Schema:
    while "$ref" in schema:
        schema = DESCRIPTION["components"]["schemas"][schema["$ref"].rsplit("/", 1)[-1]]
    return schema


def alternatives(schema: Schema) -> tuple[Schema, ...]:
    """The branches of a schema, `null` included."""
    schema = resolved(schema)
    found: list[Schema] = []
    for each in schema.get("anyOf", [schema]):
        each = resolved(each)
        found += alternatives(each) if "anyOf" in each else [each]
    return tuple(found)


def example(schema: Schema) -> Any:
    """The smallest valid value."""
    schema = next(each for each in alternatives(schema) if each.get("type") != "null")
    if "const" in schema or "enum" in schema:
        return schema.get("const", next(iter(schema.get("enum", [None]))))
    kind = schema.get("type")
    if kind == "object":
        required = (*schema.get("required", ()), *(["content"] if schema.get("title") == "Message" else ()))
        return {name: example(schema["properties"][name]) for name in required}
    if kind == "array":
        return [example(schema["items"])] * max(1, schema.get("minItems", 0))
    if kind == "string":
        return "f" * max(1, schema.get("minLength", 0))
    if kind == "boolean":
        return True
    return max(1, schema.get("minimum", 1))


def fields() -> list[Field]:
    """All of them; a leaf that is reached through several branches (`prompt.0`) takes what any of them takes."""
    found: dict[tuple[str, str], Field] = {}
    for route, methods in DESCRIPTION["paths"].items():
        for operation in methods.values():
            if "requestBody" not in operation:
                continue
            schema = operation["requestBody"]["content"]["application/json"]["schema"]
            for field in _leaves(route, "", schema, lambda value: value, 0):
                known = found.setdefault((route, field.path), field)
                if known is not field:
                    found[route, field.path] = replace(known, alternatives=known.alternatives + field.alternatives)
    return list(found.values())


def _leaves(route: str, path: str, schema: Schema, around: Callable[[Any], Any], depth: int) -> Iterator[Field]:
    branches = alternatives(schema)
    if path:
        yield Field(route, path, branches, around)
    if depth > MAX_DEPTH:
        return
    for branch in branches:
        if branch.get("type") == "array":

            def in_list(value: Any, branch: Schema = branch) -> Any:
                return around([value, *([example(branch["items"])] * (branch.get("minItems", 1) - 1))])

            yield from _leaves(route, f"{path}.0", branch["items"], in_list, depth + 1)
        for name, inner in branch.get("properties", {}).items():

            def in_object(value: Any, name: str = name, branch: Schema = branch) -> Any:
                return around({**example(branch), name: value})

            yield from _leaves(route, f"{path}.{name}".lstrip("."), inner, in_object, depth + 1)
        values = branch.get("additionalProperties")
        if isinstance(values, dict) and values.get("type") == "number":
            yield from _leaves(route, f"{path}.7", values, lambda value: around({"7": value}), depth + 1)
