"""The API's own description, /openapi.json: every field with its bounds, every answer with its form.

Written from the types that bodies are parsed with (bodies.py) and answers are held against (answers.py); FastAPI cannot
derive it, since bodies are parsed by hand so that errors keep OpenAI's shape.  Schemathesis reads it in the tests.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from headrace.server import answers, bodies
from headrace.server.base_body import StrictBody
from headrace.server.fields import NO_EFFECT, REFUSED
from headrace.server.guard import OPEN_PATHS
from headrace.version import VERSION

ERRORS: dict[int, str] = {
    400: "The request cannot be served; `param` names the field.",
    401: "No valid API key came with the request.",
    404: "There is no such model, or the server was started without what is asked for.",
    408: "The body did not arrive in time.",
    409: "Not possible in the present state.",
    413: "The body is too large.",
    415: "The body is not sent as application/json.",
    429: "Too much waits already.",
    500: "The server, or the model, failed at this request.",
    503: "The model is loading, the engine makes no progress, or the server is shutting down.",
}
_NEEDS_BODY = (400, 408, 413, 415)


@dataclass(frozen=True, slots=True)
class Operation:
    """What a route takes and answers; 401 and the errors of reading a body are added."""

    summary: str
    body: type[BaseModel] | None = None
    answer: type[BaseModel] | None = None
    errors: tuple[int, ...] = (503,)
    media_type: str = "application/json"
    events: type[BaseModel] | None = None
    links: Mapping[str, Any] = field(default_factory=dict)


_HEALTH = Operation("200 while the engine makes progress, or has nothing to do, and new work is taken.")
_TOKENS = {
    "text": {"operationId": "post_detokenize", "requestBody": {"tokens": "$response.body#/tokens"}},
    "completion": {"operationId": "post_v1_completions", "requestBody": {"prompt": "$response.body#/tokens"}},
}
_ONE_MODEL = {"operationId": "get_v1_models_model_id", "parameters": {"model_id": "$response.body#/data/0/id"}}
_GENERATION_ERRORS = (404, 429, 500, 503)
OPERATIONS: dict[tuple[str, str], Operation] = {
    ("POST", "/v1/completions"): Operation(
        "Continue a prompt, or several.",
        bodies.CompletionBody,
        answers.Completion,
        _GENERATION_ERRORS,
        events=answers.CompletionChunk,
    ),
    ("POST", "/v1/chat/completions"): Operation(
        "Answer a conversation.",
        bodies.ChatBody,
        answers.ChatCompletion,
        _GENERATION_ERRORS,
        events=answers.ChatChunk,
    ),
    ("GET", "/v1/models"): Operation(
        "Names that requests may use.", answer=answers.ModelList, links={"model": _ONE_MODEL}
    ),
    ("GET", "/v1/models/{model_id:path}"): Operation("One of them.", answer=answers.Model, errors=(404, 503)),
    ("POST", "/tokenize"): Operation(
        "A text, or a rendered conversation, as tokens.", bodies.TokenizeBody, answers.Tokens, (404, 503), links=_TOKENS
    ),
    ("POST", "/detokenize"): Operation("Tokens as text.", bodies.DetokenizeBody, answers.Text, (404, 503)),
    ("GET", "/health"): _HEALTH,
    ("GET", "/health/ready"): _HEALTH,
    ("GET", "/health/live"): Operation("200 unless the engine is stalled."),
    ("GET", "/ping"): _HEALTH,
    ("POST", "/ping"): _HEALTH,
    ("GET", "/version"): Operation("The server's version.", answer=answers.Version, errors=()),
    ("GET", "/load"): Operation("How much is in flight.", answer=answers.Load, errors=()),
    ("GET", "/metrics"): Operation("Metrics for Prometheus.", media_type="text/plain"),
    ("POST", "/reset_prefix_cache"): Operation("Forget all cached prefixes.", errors=(409, 503)),
    ("POST", "/start_profile"): Operation(
        "Record the steps from here on.", answer=answers.ProfileStarted, errors=(404, 409, 503)
    ),
    ("POST", "/stop_profile"): Operation(
        "End the recording; answers when its file is complete.",
        answer=answers.ProfileWritten,
        errors=(404, 409, 503),
    ),
}


def describe(routes: Iterable[tuple[str, str, object]], *, needs_key: bool) -> dict[str, Any]:
    """The OpenAPI 3.1 description of `routes`.  Raises KeyError for a route that OPERATIONS does not know."""
    operations = [(method, path, OPERATIONS[method, path]) for method, path, _ in routes]
    types = {each for _, _, op in operations for each in (op.body, op.answer, op.events) if each is not None}
    ordered = sorted(types | {answers.ErrorAnswer}, key=lambda each: each.__name__)
    _, schema = models_json_schema(
        [(each, "validation") for each in ordered], ref_template="#/components/schemas/{model}"
    )
    schemas = schema["$defs"]
    for each in ordered:
        if issubclass(each, StrictBody):
            _admit_what_is_not_read(schemas[each.__name__])
    paths: dict[str, dict[str, Any]] = {}
    for method, path, operation in operations:
        shown = path.replace(":path}", "}")
        paths.setdefault(shown, {})[method.lower()] = _operation(method, shown, operation, needs_key=needs_key)
    description: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "headrace", "version": VERSION},
        "paths": paths,
        "components": {"schemas": schemas},
    }
    if needs_key:
        description["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return description


def _operation(method: str, path: str, operation: Operation, *, needs_key: bool) -> dict[str, Any]:
    closed = needs_key and path not in OPEN_PATHS
    statuses = sorted({*operation.errors, *(_NEEDS_BODY if operation.body else ()), *((401,) if closed else ())})
    described: dict[str, Any] = {
        "operationId": "_".join([method.lower(), *re.findall(r"\w+", path)]),
        "summary": operation.summary,
        "responses": {"200": _success(operation), **{str(status): _error(status) for status in statuses}},
    }
    if "{" in path:
        schema = {"type": "string", "minLength": 1}
        described["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": schema} for name in re.findall(r"\{(\w+)\}", path)
        ]
    if operation.body is not None:
        content = {"application/json": {"schema": _reference(operation.body)}}
        described["requestBody"] = {"required": True, "content": content}
    if closed:
        described["security"] = [{"key": []}]
    return described


def _success(operation: Operation) -> dict[str, Any]:
    response: dict[str, Any] = {"description": operation.summary}
    if operation.answer is not None:
        response["content"] = {operation.media_type: {"schema": _reference(operation.answer)}}
    elif operation.media_type != "application/json":
        response["content"] = {operation.media_type: {"schema": {"type": "string"}}}
    if operation.events is not None:
        chunk = {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": _reference(operation.events),
        }
        response["content"]["text/event-stream"] = {
            "schema": {
                "description": "An event of a stream (`stream: true`); the data of the last is [DONE].",
                "type": "object",
                # The end is no JSON: a description that calls every event a chunk would be wrong about the last.
                "properties": {"data": {"anyOf": [{"const": "[DONE]"}, chunk]}},
                "required": ["data"],
            }
        }
    if operation.links:
        response["links"] = dict(operation.links)
    return response


def _error(status: int) -> dict[str, Any]:
    response: dict[str, Any] = {
        "description": ERRORS[status],
        "content": {"application/json": {"schema": _reference(answers.ErrorAnswer)}},
    }
    if status in (429, 503):
        response["headers"] = {"Retry-After": {"required": True, "schema": {"type": "integer", "minimum": 1}}}
    if status == 401:
        response["headers"] = {"WWW-Authenticate": {"required": True, "schema": {"type": "string"}}}
    return response


def _reference(kind: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def _admit_what_is_not_read(schema: dict[str, Any]) -> None:
    """`null` stands for "not given" in every field, and fields without effect are accepted (fields.py)."""
    properties = schema["properties"]
    for name, value in properties.items():
        if name not in schema.get("required", ()) and {"type": "null"} not in value.get("anyOf", ()):
            default = {"default": value.pop("default")} if "default" in value else {}
            properties[name] = {"anyOf": [value, {"type": "null"}], **default}
    for name in NO_EFFECT.keys() - properties.keys():
        properties[name] = {"description": f"No effect: {NO_EFFECT[name]}."}
    for name in REFUSED.keys() - properties.keys():
        off, reason = REFUSED[name]
        properties[name] = {"enum": [*off, None], "description": f"{reason[0].upper()}{reason[1:]}."}
    schema["additionalProperties"] = {"type": "null"}
