"""Request bodies of the OpenAI API as types: every numeric and size field has its bound here.

No value reaches the engine that it was not built for; what is wrong is named in one sentence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Field, ValidationError, WithJsonSchema, field_validator, model_validator

from headrace.errors import InvalidRequest
from headrace.server.base_body import StrictBody, conflict, refusal
from headrace.server.extension_fields import ExtensionFields
from headrace.server.fields import known_fields
from headrace.server.tool_bodies import MAX_CALLS, MAX_TOOLS, NO_JSON, NamedChoice, Tool, ToolCall

MAX_N = 128
MAX_PROMPTS = 2048
MAX_MESSAGES = 2048
MAX_LOGPROBS = 20
MAX_STOPS = 64
MAX_STOP_CHARS = 1024
MAX_STOP_IDS = 128
MAX_BIASES = 1024
MAX_BIAS = 100.0
MAX_ALLOWED_IDS = 65_536
MAX_BAD_WORDS = 128
MAX_BAD_WORD_CHARS = 256
MAX_NAME_CHARS = 512
MAX_ARGUMENTS = 32
MAX_ARGUMENT_CHARS = 4096
MAX_DOCUMENTS = 128
MAX_DOCUMENT_CHARS = 65_536
INT32 = 2**31 - 1
INT64 = 2**63 - 1

Body = TypeVar("Body", bound="StrictBody")
_Name = Annotated[str, Field(max_length=MAX_NAME_CHARS)]
_Int32 = Annotated[int, Field(ge=0, le=INT32)]
# The forms of fields that are checked by hand, as JSON Schemas.
_IDS_SCHEMA = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": INT32}, "minItems": 1}
_TEXT_SCHEMA = {"type": "string", "minLength": 1}
_PROMPT_SCHEMA = {
    "anyOf": [
        _TEXT_SCHEMA,
        {"type": "array", "items": _TEXT_SCHEMA, "minItems": 1, "maxItems": MAX_PROMPTS},
        _IDS_SCHEMA,
        {"type": "array", "items": _IDS_SCHEMA, "minItems": 1, "maxItems": MAX_PROMPTS},
    ]
}
_PART_SCHEMA = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
    "additionalProperties": False,
}
_CONTENT_SCHEMA = {"anyOf": [{"type": "string"}, {"type": "array", "items": _PART_SCHEMA}, {"type": "null"}]}
_MESSAGE_SCHEMA: dict[str, Any] = {
    "additionalProperties": {"enum": [None, []]},
    "if": {"not": {"required": ["tool_calls"]}},
    "then": {"required": ["content"]},
}
_ARGUMENTS_SCHEMA: dict[str, Any] = {
    "type": "object",
    "propertyNames": {"pattern": "^[A-Za-z_][A-Za-z0-9_]{0,63}$"},
    "additionalProperties": {
        "anyOf": [
            {"type": "boolean"},
            {"type": "integer", "minimum": -INT32, "maximum": INT32},
            {"type": "string", "maxLength": MAX_ARGUMENT_CHARS},
            {"type": "null"},
        ]
    },
    "maxProperties": MAX_ARGUMENTS,
}
_STOP = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARS}
_STOP_SCHEMA = {"anyOf": [_STOP, {"type": "array", "items": _STOP, "maxItems": MAX_STOPS}]}
_BIAS_SCHEMA = {
    "type": "object",
    "propertyNames": {"pattern": "^[0-9]{1,10}$"},
    "additionalProperties": {"type": "number", "minimum": -MAX_BIAS, "maximum": MAX_BIAS},
    "maxProperties": MAX_BIASES,
}


# Variables that a template reads; what the server gives it, nobody else may set.
TemplateArguments = Annotated[
    dict[
        Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")],
        bool | Annotated[int, Field(ge=-INT32, le=INT32)] | Annotated[str, Field(max_length=MAX_ARGUMENT_CHARS)] | None,
    ],
    Field(max_length=MAX_ARGUMENTS),
    WithJsonSchema(_ARGUMENTS_SCHEMA),
]


# Title and text, usually: which keys it has is between client and template.
Document = Annotated[
    dict[
        Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")],
        Annotated[str, Field(max_length=MAX_DOCUMENT_CHARS)],
    ],
    Field(max_length=MAX_ARGUMENTS),
    WithJsonSchema(
        {
            "type": "object",
            "propertyNames": {"pattern": "^[A-Za-z_][A-Za-z0-9_]{0,63}$"},
            "additionalProperties": {"type": "string", "maxLength": MAX_DOCUMENT_CHARS},
            "maxProperties": MAX_ARGUMENTS,
        }
    ),
]


class StreamOptions(StrictBody):
    include_usage: bool = False
    continuous_usage_stats: bool = False


class Message(StrictBody):
    model_config = ConfigDict(json_schema_extra=_MESSAGE_SCHEMA)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str | None, WithJsonSchema(_CONTENT_SCHEMA)] = None
    name: _Name | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_CALLS)] | None = None
    tool_call_id: _Name | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _only_known_fields(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        kept = {}
        for name, item in value.items():
            if name in cls.model_fields:
                kept[name] = item
            elif item is not None and item != []:  # `tool_calls: []`, `refusal: null` as clients send them back
                raise refusal(f"the field `{str(name)[:64]}` of a message is not supported")
        return kept

    @field_validator("content", mode="before")
    @classmethod
    def _join_parts(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        for part in value:
            kind = part.get("type") if isinstance(part, dict) else None
            if not isinstance(part, dict) or kind != "text" or not isinstance(part.get("text"), str) or len(part) != 2:
                raise refusal('only text parts are supported: {"type": "text", "text": "…"}')
        return "\n".join(part["text"] for part in value)

    @model_validator(mode="after")
    def _has_content(self) -> Message:
        if self.tool_calls and self.role != "assistant":
            raise conflict("only the assistant makes tool calls", "tool_calls")
        if self.content is None and not self.tool_calls:
            raise conflict("`content` of a message is missing", "content")
        return self

    def for_template(self) -> dict[str, Any]:
        """The message as chat templates read it."""
        message = self.model_dump(include={"role", "name", "tool_call_id"}, exclude_none=True)
        message["content"] = self.content or ""
        if self.tool_calls:
            message["tool_calls"] = [call.for_template() for call in self.tool_calls]
        if reasoning := self.reasoning_content or self.reasoning:
            message["reasoning_content"] = reasoning
        return message


class SamplingFields(ExtensionFields):
    """What completions and chat have in common.  None means: the model's own default, then vLLM's."""

    model: _Name | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_N)] = 1
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=INT32)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    seed: Annotated[int, Field(ge=-INT64 - 1, le=INT64)] | None = None
    stop: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]],
        Field(default_factory=list, max_length=MAX_STOPS),
        WithJsonSchema(_STOP_SCHEMA),
    ]
    stop_token_ids: Annotated[list[_Int32], Field(default_factory=list, max_length=MAX_STOP_IDS)]
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: _Int32 = 0
    max_tokens: _Int32 | None = None
    skip_special_tokens: bool = True
    priority: Annotated[int, Field(ge=-INT32, le=INT32)] = 0
    cache_salt: Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS)] = ""
    logit_bias: Annotated[
        dict[Annotated[str, Field(pattern=r"^[0-9]{1,10}$")], Annotated[float, Field(ge=-MAX_BIAS, le=MAX_BIAS)]],
        Field(default_factory=dict, max_length=MAX_BIASES),
        WithJsonSchema(_BIAS_SCHEMA),
    ]
    allowed_token_ids: Annotated[list[_Int32], Field(min_length=1, max_length=MAX_ALLOWED_IDS)] | None = None
    bad_words: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=MAX_BAD_WORD_CHARS)]],
        Field(default_factory=list, max_length=MAX_BAD_WORDS),
    ]
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    skip_reading_prefix_cache: bool = False
    return_tokens_as_token_ids: bool = False
    return_token_ids: bool = False

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> SamplingFields:
        if self.stream_options is not None and not self.stream:
            raise conflict("`stream_options` is allowed only with `stream: true`", "stream_options")
        if self.prompt_logprobs is not None and self.stream:
            raise conflict(
                "`prompt_logprobs` come with whole answers only; leave out `stream: true`", "prompt_logprobs"
            )
        if self.prompt_logprob_token_ids is not None:
            if self.stream:
                raise conflict(
                    "`prompt_logprob_token_ids` come with whole answers only; leave out `stream: true`",
                    "prompt_logprob_token_ids",
                )
            if self.prompt_logprobs is not None:
                raise conflict(
                    "`prompt_logprobs` and `prompt_logprob_token_ids` exclude each other", "prompt_logprob_token_ids"
                )
        return self

    @model_validator(mode="after")
    def _best_of_more(self) -> SamplingFields:
        if self.best_of is not None and self.best_of < self.n:
            raise conflict(f"`best_of` ({self.best_of}) must be at least `n` ({self.n})", "best_of")
        if self.num_sequences > self.n and self.stream:
            raise conflict(
                "the best of several answers is known at their end only; leave out `stream: true`", "best_of"
            )
        return self

    @property
    def num_sequences(self) -> int:
        """How many are generated for a prompt."""
        return self.n if self.best_of is None else self.best_of


class CompletionBody(SamplingFields):
    prompt: Annotated[Any, WithJsonSchema(_PROMPT_SCHEMA)]
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    add_special_tokens: bool = True


class ChatBody(SamplingFields):
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: _Int32 | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: Literal[False] = False
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: TemplateArguments | None = None
    add_special_tokens: bool = False
    tools: Annotated[list[Tool], Field(default_factory=list, max_length=MAX_TOOLS)]
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    parallel_tool_calls: bool | None = None
    include_reasoning: bool = True
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    documents: Annotated[list[Document], Field(default_factory=list, max_length=MAX_DOCUMENTS)]

    @model_validator(mode="after")
    def _continues_or_begins(self) -> ChatBody:
        if self.continue_final_message and self.add_generation_prompt:
            raise conflict("`continue_final_message` needs `add_generation_prompt: false`", "continue_final_message")
        return self

    @property
    def is_constrained(self) -> bool:
        return super().is_constrained or self.tool_choice == "required" or isinstance(self.tool_choice, NamedChoice)


class TokenizeBody(StrictBody):
    model: _Name | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = True
    tools: Annotated[list[Tool], Field(default_factory=list, max_length=MAX_TOOLS)]
    return_token_strs: bool = False


class DetokenizeBody(StrictBody):
    model: _Name | None = None
    tokens: list[_Int32]


_CODES = {"conflict": "conflicting_fields", NO_JSON: "invalid_json"}


def parse(model: type[Body], body: Mapping[str, Any]) -> Body:
    """Validate a JSON object.

    Raises InvalidRequest with the first field that is wrong, in one sentence: code "invalid_value", or another for what
    no schema can say: "conflicting_fields" when each is possible alone, "invalid_json" inside a text.
    """
    kept = known_fields(body, model.model_fields)
    try:
        return model.model_validate(kept)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        conflict = first["type"] == "conflict"
        place = [*first["loc"], first["ctx"]["field"]] if conflict else first["loc"]
        param = ".".join(str(part) for part in place) or None
        got = first.get("input")
        shown = (
            f", got {got!r}"[:80] if isinstance(got, bool | int | float | str) and first["type"] != "missing" else ""
        )
        where = f"`{param}`: " if param and not (conflict and len(place) == 1) else ""
        code = _CODES.get(first["type"], "invalid_value")
        raise InvalidRequest(f"{where}{first['msg']}{shown}.", param=param, code=code) from None
