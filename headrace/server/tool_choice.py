"""`tools` and `tool_choice`, with the server's parsers -> what the answer must follow, and how it is read."""

from __future__ import annotations

import json
from typing import Any

from headrace.errors import InvalidRequest
from headrace.server.bodies import ChatBody
from headrace.server.constraints import Constraint, constraint_of
from headrace.server.options import ServerOptions
from headrace.server.reading import Reading
from headrace.server.reasoning import CLOSE, OPEN, PARSERS
from headrace.server.state import Tokenizer
from headrace.server.tool_bodies import NamedChoice, Tool

MAX_ENFORCED_CALLS = 16
_SHARED = ("$defs", "definitions")


def check_tools(body: ChatBody, options: ServerOptions, tokenizer: Tokenizer) -> None:
    """Refuse what cannot be honoured: a choice without tools, tools that the model is never told of."""
    names = [tool.function.name for tool in body.tools]
    choice = body.tool_choice
    if not names:
        if isinstance(choice, NamedChoice) or choice == "required":
            raise InvalidRequest("`tool_choice` needs `tools`.", param="tool_choice")
        return
    if len(set(names)) < len(names):
        raise InvalidRequest("`tools`: each function needs its own name.", param="tools")
    if isinstance(choice, NamedChoice) and choice.function.name not in names:
        raise InvalidRequest(
            f"`tool_choice` names `{choice.function.name}`, which is not in `tools`.", param="tool_choice"
        )
    if choice in (None, "auto") and not (options.enable_auto_tool_choice and options.tool_call_parser):
        raise InvalidRequest(
            '`tool_choice` "auto" needs a server started with --enable-auto-tool-choice and --tool-call-parser.',
            param="tool_choice",
            code="unsupported_parameter",
        )
    if choice != "none" and not tokenizer.template_reads("tools"):
        raise InvalidRequest(
            "`tools` are not supported: this model's chat template does not show them to the model;"
            " start the server with a --chat-template that does.",
            param="tools",
            code="unsupported_parameter",
        )


def reading_of(body: ChatBody, options: ServerOptions, prompt: str) -> Reading | None:
    """How the answer is read; None when it is content as it is.  `prompt` is the rendered conversation."""
    begins_inside = None
    if options.reasoning_parser:
        is_bound = body.is_constrained and not body.begins_free
        begins_inside = is_thinking(prompt) or (
            PARSERS[options.reasoning_parser] and not prompt.rstrip().endswith(CLOSE) and not is_bound
        )
        if is_bound and not begins_inside:
            begins_inside = None  # the grammar holds from the first token on: there is no reasoning
    calls, choice = "", body.tool_choice
    if isinstance(choice, NamedChoice):
        calls = "named"
    elif choice == "required":
        calls = "list"
    elif body.tools and choice != "none":
        calls = options.tool_call_parser
    if begins_inside is None and not calls:
        return None
    names = (choice.function.name,) if isinstance(choice, NamedChoice) else tuple(t.function.name for t in body.tools)
    return Reading(begins_inside, body.include_reasoning, calls, names, body.parallel_tool_calls is not False)


def is_thinking(prompt: str) -> bool:
    """Whether the template has opened the reasoning already."""
    return prompt.rstrip().endswith(OPEN)


def chat_constraint(body: ChatBody) -> Constraint | None:
    """What the answer must follow: calls that are required, or what `response_format` and the like ask for."""
    asked, choice = constraint_of(body), body.tool_choice
    if asked is not None and body.tools and choice != "none":
        raise InvalidRequest(
            f'`tools` cannot be used together with `{asked.field}`; set `tool_choice` to "none".', param="tools"
        )
    if isinstance(choice, NamedChoice):
        tool = next(each for each in body.tools if each.function.name == choice.function.name)
        return Constraint("json", json.dumps(tool.function.parameters or {"type": "object"}), "tools")
    if choice == "required":
        most = MAX_ENFORCED_CALLS if body.parallel_tool_calls is not False else 1
        return Constraint("json", json.dumps(_list_of_calls(body.tools, most)), "tools")
    return asked


def _list_of_calls(tools: list[Tool], most: int) -> dict[str, Any]:
    """vLLM's form: `[{"name": ..., "parameters": {...}}]`, one shape per function."""
    shared: dict[str, dict[str, Any]] = {}
    shapes = []
    for tool in tools:
        parameters = dict(tool.function.parameters or {"type": "object"})
        for place in _SHARED:
            # References lead to the root of the schema, so what they name must move there.
            for name, schema in (parameters.pop(place, None) or {}).items():
                if shared.setdefault(place, {}).setdefault(name, schema) != schema:
                    raise InvalidRequest(f"`tools`: two functions define `{name}` differently.", param="tools")
        shapes.append(
            {
                "type": "object",
                "properties": {"name": {"const": tool.function.name}, "parameters": parameters},
                "required": ["name", "parameters"],
                "additionalProperties": False,
            }
        )
    return {"type": "array", "minItems": 1, "maxItems": most, "items": {"anyOf": shapes}, **shared}
