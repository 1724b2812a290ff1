"""What an answer must follow: the fields of OpenAI and vLLM for structured output -> one constraint."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from headrace.errors import InvalidRequest
from headrace.server.base_body import StrictBody
from headrace.server.state import ServedEngine

MAX_CHARACTERS = 65_536
MAX_CHOICES = 512
MAX_STRUCTURES = 128
MAX_MARK = 1024

Schema = Annotated[dict[str, Any], Field(description="a JSON schema")]
Text = Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS)]
Choices = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=4096)]], Field(min_length=1, max_length=MAX_CHOICES)
]


class JsonSchemaFormat(StrictBody):
    name: Annotated[str, Field(max_length=512)] | None = None
    description: Annotated[str, Field(max_length=MAX_CHARACTERS)] | None = None
    schema_: Annotated[Schema, Field(alias="schema")]
    strict: bool | None = None  # constrained decoding is always strict


class Structure(StrictBody):
    begin: Annotated[str, Field(min_length=1, max_length=MAX_MARK)]
    schema_: Annotated[Schema, Field(alias="schema")]
    end: Annotated[str, Field(max_length=MAX_MARK)]


class ResponseFormat(StrictBody):
    """`structures` with `triggers`, or vLLM's newer `format`, belong to type "structural_tag"."""

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchemaFormat | None = None
    structures: Annotated[list[Structure], Field(max_length=MAX_STRUCTURES)] | None = None
    triggers: (
        Annotated[list[Annotated[str, Field(min_length=1, max_length=MAX_MARK)]], Field(max_length=MAX_STRUCTURES)]
        | None
    ) = None
    format: dict[str, Any] | None = None


class StructuredOutputs(StrictBody):
    """vLLM's `structured_outputs`: exactly one of them."""

    json_: Annotated[Schema | Text | None, Field(alias="json")] = None
    regex: Text | None = None
    choice: Choices | None = None
    grammar: Text | None = None
    json_object: Literal[True] | None = None
    structural_tag: Text | None = None


class ConstraintFields(StrictBody):
    """Fields of a body that constrain its answer; at most one of them."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | Text | None = None
    guided_regex: Text | None = None
    guided_choice: Choices | None = None
    guided_grammar: Text | None = None

    @property
    def begins_free(self) -> bool:
        """Whether the constraint leaves the beginning of the answer free: a structural tag."""
        format_, outputs = self.response_format, self.structured_outputs
        return (format_ is not None and format_.type == "structural_tag") or (
            outputs is not None and outputs.structural_tag is not None
        )

    @property
    def is_constrained(self) -> bool:
        """Whether accepting the body compiles a grammar, which may take long."""
        given = [name for name in ConstraintFields.model_fields if getattr(self, name) is not None]
        if given == ["response_format"] and self.response_format is not None:
            return self.response_format.type != "text"
        return bool(given)


@dataclass(frozen=True, slots=True)
class Constraint:
    """`kind` and `text` as the engine's grammar compiler takes them; `field` is where it came from."""

    kind: str
    text: str
    field: str

    def compile(self, engine: ServedEngine, after: str = "") -> object:
        """The engine's grammar; with `after` it begins behind that mark.

        Raises InvalidRequest that names the field.
        """
        try:
            return engine.tokenizer.grammar(self.kind, self.text, after)
        except InvalidRequest as error:
            raise InvalidRequest(
                f"`{self.field}` cannot be followed: {error}.", param=self.field, code="invalid_grammar"
            ) from None


def constraint_of(body: ConstraintFields) -> Constraint | None:
    """The one constraint of a body.  Raises InvalidRequest for two."""
    found = [*_response_format(body), *_structured_outputs(body), *_guided(body)]
    if len(found) > 1:
        names = " and ".join(f"`{each.field}`" for each in found[:2])
        raise InvalidRequest(f"{names} exclude each other; send one of them.", param=found[1].field)
    return found[0] if found else None


def json_text(schema: dict[str, Any] | str) -> str:
    """One text for equal schemas written the same way, so that they share a place in the cache."""
    return schema if isinstance(schema, str) else json.dumps(schema, ensure_ascii=False)


def _response_format(body: ConstraintFields) -> list[Constraint]:
    wanted = body.response_format
    if wanted is None or wanted.type == "text":
        return []
    if wanted.type == "json_object":
        return [Constraint("json", '{"type": "object"}', "response_format")]
    if wanted.type == "structural_tag":
        if (wanted.format is None) == (wanted.structures is None or wanted.triggers is None):
            raise InvalidRequest(
                '`response_format` of type "structural_tag" needs `structures` and `triggers`, or `format`.',
                param="response_format",
            )
        given = wanted.model_dump(by_alias=True, exclude_none=True, include={"structures", "triggers", "format"})
        return [Constraint("structural_tag", json.dumps(given, ensure_ascii=False), "response_format")]
    if wanted.json_schema is None:
        raise InvalidRequest('`response_format` of type "json_schema" needs `json_schema`.', param="response_format")
    return [Constraint("json", json_text(wanted.json_schema.schema_), "response_format.json_schema.schema")]


def _structured_outputs(body: ConstraintFields) -> list[Constraint]:
    wanted = body.structured_outputs
    if wanted is None:
        return []
    at = "structured_outputs"
    found = []
    if wanted.json_ is not None:
        found.append(Constraint("json", json_text(wanted.json_), f"{at}.json"))
    if wanted.regex is not None:
        found.append(Constraint("regex", wanted.regex, f"{at}.regex"))
    if wanted.choice is not None:
        found.append(Constraint("choice", json.dumps(wanted.choice), f"{at}.choice"))
    if wanted.grammar is not None:
        found.append(Constraint("grammar", wanted.grammar, f"{at}.grammar"))
    if wanted.json_object is not None:
        found.append(Constraint("json", '{"type": "object"}', f"{at}.json_object"))
    if wanted.structural_tag is not None:
        found.append(Constraint("structural_tag", wanted.structural_tag, f"{at}.structural_tag"))
    if len(found) != 1:
        raise InvalidRequest(
            "`structured_outputs` needs exactly one of json, regex, choice, grammar, json_object, structural_tag.",
            param=at,
        )
    return found


def _guided(body: ConstraintFields) -> list[Constraint]:
    found = []
    if body.guided_json is not None:
        found.append(Constraint("json", json_text(body.guided_json), "guided_json"))
    if body.guided_regex is not None:
        found.append(Constraint("regex", body.guided_regex, "guided_regex"))
    if body.guided_choice is not None:
        found.append(Constraint("choice", json.dumps(body.guided_choice), "guided_choice"))
    if body.guided_grammar is not None:
        found.append(Constraint("grammar", body.guided_grammar, "guided_grammar"))
    return found
