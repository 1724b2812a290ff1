"""What a client asks for: frozen values that the scheduler, the engine and the simulator share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from headrace.core.repetition import RepetitionDetection
from headrace.core.thinking import ThinkingBudget

GRAMMAR_FAILED = "the output's grammar is too complex: "
"""How the error of a sequence begins whose grammar could not be followed: the caller's fault, not the model's."""


class FinishReason(StrEnum):
    """Why a sequence ended.  OpenAI's clients see the first two; the third only when they asked for it."""

    STOP = "stop"
    LENGTH = "length"
    REPETITION = "repetition"
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose tokens and when to stop; names and defaults are vLLM's (reference: vLLM SamplingParams).

    `temperature == 0` means greedy.  `top_k == 0` and `top_p == 1` switch the filter off.  `logprobs` is the
    number of alternatives to report beside the chosen token, or None for no log-probabilities at all;
    `prompt_logprobs` is the same for the tokens of the prompt, and such a request reads nothing from the prefix cache:
    all of its positions are computed.  `bad_words_token_ids` are the forbidden words in the tokenizer's spellings.
    Stop *strings* are matched on text, outside the core; the core sees ids only.
    `logprob_token_ids` are reported in place of the most likely alternatives.  `prompt_logprob_token_ids` has, for each
    token of the prompt behind position `prompt_logprob_start`, the ids whose log-probabilities are reported there (-1:
    none); it goes without `prompt_logprobs`.
    `stream_interval` is the number of tokens between two pieces of a stream, after the first.
    """

    max_tokens: int = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    logprobs: int | None = None
    skip_special_tokens: bool = True
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] = ()
    bad_words_token_ids: tuple[tuple[int, ...], ...] = ()
    prompt_logprobs: int | None = None
    skip_reading_prefix_cache: bool = False
    repetition_detection: RepetitionDetection | None = None
    stream_interval: int = 1
    detokenize: bool = True
    spaces_between_special_tokens: bool = True
    logprob_token_ids: tuple[int, ...] = ()
    prompt_logprob_token_ids: tuple[tuple[int, ...], ...] | None = None
    prompt_logprob_start: int = 0
    thinking: ThinkingBudget | None = None

    @property
    def scores_prompt(self) -> bool:
        """Whether log-probabilities of the prompt are asked for, so that all of it is computed."""
        return self.prompt_logprobs is not None or self.prompt_logprob_token_ids is not None


@dataclass(frozen=True, slots=True)
class Request:
    """One sequence to generate.

    `prompt_token_ids` is any sequence of ids: the simulator passes a `range`, which costs nothing, when only
    lengths matter.  `eos_token_ids` are the model's own end tokens.  A lower `priority` is served first; it is
    read only when the scheduler's queue policy is "priority".  `arrived` is a number that orders arrivals
    (seconds or a counter) and breaks priority ties.  Prefix-cache hits never cross different `cache_salt`s.
    `grammar` is what the output must follow, compiled by the engine's tokenizer; the core never looks at it.
    """

    request_id: str
    prompt_token_ids: Sequence[int]
    params: SamplingParams = field(default_factory=SamplingParams)
    eos_token_ids: frozenset[int] = frozenset()
    priority: int = 0
    arrived: float = 0.0
    cache_salt: str = ""
    grammar: object | None = None
