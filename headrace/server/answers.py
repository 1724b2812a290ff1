"""Answers as types: what /openapi.json describes and tests hold every answer against.

Answers are built as plain dicts (responses.py, sse.py): a stream cannot pay for a validation per token.  A field with
a default may be missing from an answer.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=0)]
Ids = list[Count]
FinishReason = Literal["stop", "length", "tool_calls", "repetition"]


class Answer(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class Error(Answer):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(Answer):
    error: Error


class PromptTokensDetails(Answer):
    cached_tokens: Count


class Usage(Answer):
    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count
    prompt_tokens_details: PromptTokensDetails


class PromptLogprob(Answer):
    logprob: float
    rank: Annotated[int, Field(ge=1)]
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]
PromptScores = list[list[float]]
"""One row a scored token of the prompt: log-probabilities of the ids that were asked for, -9999 for the id -1."""


# --- completions ------------------------------------------------------------------------------------------------------


class CompletionLogprobs(Answer):
    """Parallel lists, one entry a token."""

    text_offset: list[Count]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(Answer):
    index: Count
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason
    stop_reason: int | str | None
    prompt_logprobs: PromptLogprobs | None = None
    prompt_token_id_logprobs: PromptScores | None = None
    token_ids: Ids | None = None
    prompt_token_ids: Ids | None = None


class Completion(Answer):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: Annotated[list[CompletionChoice], Field(min_length=1)]
    usage: Usage


class CompletionChunkChoice(Answer):
    index: Count
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: int | str | None = None
    token_ids: Ids | None = None
    prompt_token_ids: Ids | None = None


class CompletionChunk(Answer):
    """One event of a stream; without choices it only tells the usage."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChunkChoice]
    usage: Usage | None = None


# --- chat -------------------------------------------------------------------------------------------------------------


class TokenScore(Answer):
    token: str
    logprob: float
    bytes: list[Annotated[int, Field(ge=0, le=255)]]


class ChatToken(TokenScore):
    top_logprobs: list[TokenScore]


class ChatLogprobs(Answer):
    content: list[ChatToken]


class FunctionCall(Answer):
    name: str
    arguments: str


class Call(Answer):
    id: str
    type: Literal["function"]
    function: FunctionCall


class ChatMessage(Answer):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[Call] | None = None


class ChatChoice(Answer):
    index: Count
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    stop_reason: int | str | None
    token_ids: Ids | None = None


class ChatCompletion(Answer):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: Annotated[list[ChatChoice], Field(min_length=1)]
    usage: Usage
    prompt_logprobs: PromptLogprobs | None = None
    prompt_token_id_logprobs: PromptScores | None = None
    prompt_token_ids: Ids | None = None


class FunctionDelta(Answer):
    arguments: str
    name: str | None = None


class CallDelta(Answer):
    """News of a call: its id and name come once, with the first."""

    index: Count
    function: FunctionDelta
    id: str | None = None
    type: Literal["function"] | None = None


class Delta(Answer):
    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[CallDelta] | None = None


class ChatChunkChoice(Answer):
    index: Count
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: int | str | None = None
    token_ids: Ids | None = None
    prompt_token_ids: Ids | None = None


class ChatChunk(Answer):
    """One event of a stream; without choices it only tells the usage."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


# --- the rest ---------------------------------------------------------------------------------------------------------


class Model(Answer):
    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["headrace"]
    root: str
    parent: None
    max_model_len: Annotated[int, Field(ge=1)]


class ModelList(Answer):
    object: Literal["list"]
    data: Annotated[list[Model], Field(min_length=1)]


class Tokens(Answer):
    count: Count
    max_model_len: Annotated[int, Field(ge=1)]
    tokens: list[Count]
    token_strs: list[str] | None


class Text(Answer):
    prompt: str


class Version(Answer):
    version: str


class Load(Answer):
    """Sequences in flight."""

    server_load: Count


class ProfileStarted(Answer):
    trace: str
    max_steps: Annotated[int, Field(ge=1)]


class ProfileWritten(Answer):
    trace: str
    bytes: Count
    steps: Count
    ended_by: Literal["stop_profile", "max_steps"]
