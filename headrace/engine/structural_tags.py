"""Structural tags: free text, in which what follows a trigger must have a form (vLLM's `structural_tag`).

Imports no torch, like grammar_source.py, which it belongs to.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from llguidance import StructTag

from headrace.errors import InvalidRequest

MAX_TAGS = 128


def grammars_of(text: str, json_options: Mapping[str, Any]) -> Iterator[str]:
    """Lark grammars for a structural tag in JSON, to be tried in this order.

    A trigger in angle brackets may be one special token of the tokenizer, or text; only the tokenizer can tell.
    """
    tags = [_tag(begin, schema, end, triggers, json_options) for begin, schema, end, triggers in _parts(text)]
    if not 1 <= len(tags) <= MAX_TAGS:
        raise InvalidRequest(f"it needs 1 to {MAX_TAGS} structures, not {len(tags)}")
    if any(tag.trigger.startswith("<") and tag.trigger.endswith(">") for tag in tags):
        yield StructTag.to_grammar(tags, assume_special=True)
    yield StructTag.to_grammar(tags, assume_special=False)


def _parts(text: str) -> Iterator[tuple[object, object, object, list[Any]]]:
    """(begin, schema, end, triggers) of each tag, from vLLM's older form or its newer one."""
    try:
        value = json.loads(text)
    except ValueError:
        raise InvalidRequest("it is no JSON") from None
    if not isinstance(value, dict):
        raise InvalidRequest("it must be an object")
    if "format" not in value:
        triggers = _list(value, "triggers")
        for each in _list(value, "structures"):
            yield _get(each, "begin"), _get(each, "schema"), _get(each, "end"), triggers
        return
    form = value["format"]
    if _get(form, "type") != "triggered_tags":
        raise InvalidRequest('of the forms of `format` only "triggered_tags" is supported')
    unknown = sorted(key for key in form if form[key] and key not in ("type", "triggers", "tags"))
    if unknown:
        raise InvalidRequest(f"`{unknown[0]}` of a structural tag is not supported")
    for each in _list(form, "tags"):
        content = _get(each, "content")
        if _get(content, "type") != "json_schema":
            raise InvalidRequest('of the contents of tags only "json_schema" is supported')
        yield _get(each, "begin"), _get(content, "json_schema"), _get(each, "end"), _list(form, "triggers")


def _tag(begin: object, schema: object, end: object, triggers: list[Any], json_options: Mapping[str, Any]) -> StructTag:
    if not isinstance(begin, str) or not isinstance(end, str) or not isinstance(schema, dict):
        raise InvalidRequest("each structure needs `begin` and `end`, both texts, and a JSON schema")
    trigger = next((each for each in triggers if isinstance(each, str) and each and begin.startswith(each)), None)
    if trigger is None:
        raise InvalidRequest(f"no trigger is the beginning of {begin[:64]!r}")
    return StructTag(trigger=trigger, begin=begin, grammar={**schema, "x-guidance": dict(json_options)}, end=end)


def _list(value: object, key: str) -> list[Any]:
    found = _get(value, key)
    if not isinstance(found, list):
        raise InvalidRequest(f"`{key}` must be a list")
    return found


def _get(value: object, key: str) -> Any:
    if not isinstance(value, dict) or key not in value:
        raise InvalidRequest(f"`{key}` is missing")
    return value[key]
