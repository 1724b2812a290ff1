"""Fields that vLLM's completions and chat have beyond OpenAI's: each with its bound."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from headrace.core.repetition import RepetitionDetection
from headrace.server.base_body import StrictBody, conflict
from headrace.server.constraints import ConstraintFields

MAX_BEST_OF = 128
MAX_PATTERN = 256
MAX_NAMED_IDS = 128  # vLLM's
MAX_SCORED = 32_768
INT32 = 2**31 - 1

_Size = Annotated[int, Field(ge=0, le=MAX_PATTERN)]


class RepetitionBody(StrictBody):
    """vLLM's RepetitionDetectionParams; `max_pattern_size` 0 switches it off."""

    max_pattern_size: _Size = 0
    min_pattern_size: _Size = 0
    min_count: _Size = 0

    @model_validator(mode="after")
    def _can_be_followed(self) -> RepetitionBody:
        if fault := self.rule.fault:
            raise conflict(fault, fault.partition(" ")[0])
        return self

    @property
    def rule(self) -> RepetitionDetection:
        return RepetitionDetection(self.max_pattern_size, self.min_pattern_size, self.min_count)


class ExtensionFields(ConstraintFields):
    """None means: not asked for."""

    best_of: Annotated[int, Field(ge=1, le=MAX_BEST_OF)] | None = None
    repetition_detection: RepetitionBody | None = None
    stream_interval: Annotated[int, Field(ge=1, le=INT32)] = 1
    spaces_between_special_tokens: bool = True
    truncate_prompt_tokens: Annotated[int, Field(ge=-1, le=INT32)] | None = None
    truncation_side: Literal["left", "right"] = "left"
    thinking_token_budget: Annotated[int, Field(ge=-1, le=INT32)] | None = None
    request_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,128}$")] | None = None
    logprob_token_ids: (
        Annotated[list[Annotated[int, Field(ge=0, le=INT32)]], Field(min_length=1, max_length=MAX_NAMED_IDS)] | None
    ) = None
    prompt_logprob_token_ids: (
        Annotated[
            list[Annotated[list[Annotated[int, Field(ge=-1, le=INT32)]], Field(max_length=MAX_NAMED_IDS)]],
            Field(max_length=MAX_SCORED),
        ]
        | None
    ) = None
    prompt_logprob_start: Annotated[int, Field(ge=0, le=INT32)] = 0

    @model_validator(mode="after")
    def _scores_belong_together(self) -> ExtensionFields:
        if self.prompt_logprob_start and self.prompt_logprob_token_ids is None:
            raise conflict("`prompt_logprob_start` needs `prompt_logprob_token_ids`", "prompt_logprob_start")
        return self
