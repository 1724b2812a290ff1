"""Sampling parameters as vLLM's users write them, checked, and translated for the core."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from headrace.core import request as core
from headrace.core.repetition import RepetitionDetection
from headrace.core.thinking import ThinkingBudget
from headrace.errors import InvalidRequest

MAX_N = 16_384  # vLLM's
MAX_SEED = 1 << 63
MAX_NAMED_IDS = 128  # vLLM's
MAX_PATTERN = 256
THINKING_MARKS = ("<think>", "</think>")
_STRUCTURES = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")


class RequestOutputKind(Enum):
    """vLLM's names for what comes back while an answer grows; `LLM` returns whole answers, as vLLM's does."""

    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


class Speller(Protocol):
    """What a translation needs of a tokenizer."""

    @property
    def vocab_size(self) -> int: ...
    def token_id(self, text: str) -> int | None: ...
    def spellings(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to choose tokens and when to stop; names, spellings and defaults are vLLM's.

    `temperature` 0 is greedy, `top_k` 0 or -1 and `top_p` 1 switch the filter off, `max_tokens` None means as long as
    the model's context.  `n` sequences of a seeded request have the seeds seed, seed + 1, ….
    `structured_outputs` is vLLM's StructuredOutputsParams as a mapping: exactly one of json (a schema), regex, choice,
    grammar, json_object, structural_tag.  With `best_of` above `n` many are generated and the likeliest `n` come back.
    `stream_interval` and `output_kind` are taken as vLLM's programs give them: whole answers do not depend on them.
    Raises InvalidRequest.
    """

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    bad_words: Sequence[str] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_reading_prefix_cache: bool = False
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: Sequence[int] | None = None
    structured_outputs: Mapping[str, Any] | None = None
    best_of: int | None = None
    repetition_detection: RepetitionDetection | Mapping[str, int] | None = None
    stream_interval: int = 1
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    detokenize: bool = True
    spaces_between_special_tokens: bool = True
    truncate_prompt_tokens: int | None = None
    truncation_side: str = "left"
    logprob_token_ids: Sequence[int] | None = None
    prompt_logprob_token_ids: Sequence[Sequence[int]] | None = None
    prompt_logprob_start: int = 0
    flat_logprobs: bool = False
    thinking_token_budget: int | None = None

    def __post_init__(self) -> None:
        _whole("n", self.n, 1, MAX_N)
        _number("presence_penalty", self.presence_penalty, -2, 2)
        _number("frequency_penalty", self.frequency_penalty, -2, 2)
        _number("repetition_penalty", self.repetition_penalty, 0, float("inf"), above=True)
        _number("temperature", self.temperature, 0, float("inf"))
        _number("top_p", self.top_p, 0, 1, above=True)
        _whole("top_k", self.top_k, -1, 1 << 31)
        _number("min_p", self.min_p, 0, 1)
        if self.seed is not None:
            _whole("seed", self.seed, -1, MAX_SEED - 1)
        if self.max_tokens is not None:
            _whole("max_tokens", self.max_tokens, 1, 1 << 31)
        _whole("min_tokens", self.min_tokens, 0, self.max_tokens or 1 << 31)
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), 0, 1 << 31)
        self._check_extensions()
        for name, texts in (("stop", self.stops), ("bad_words", self.bad_words or ())):
            if isinstance(texts, str) or not all(isinstance(text, str) and text for text in texts):
                raise InvalidRequest(f"`{name}` must hold texts that are not empty.", param=name)
        _ = self.constraint

    def _check_extensions(self) -> None:
        if self.best_of is not None:
            _whole("best_of", self.best_of, self.n, MAX_N)
        _whole("stream_interval", self.stream_interval, 1, 1 << 31)
        if not isinstance(self.output_kind, RequestOutputKind):
            raise InvalidRequest("`output_kind` must be a RequestOutputKind.", param="output_kind")
        if not self.detokenize and self.stops:
            raise InvalidRequest("`stop` is found in text: it needs `detokenize`.", param="stop")
        if self.truncate_prompt_tokens is not None:
            _whole("truncate_prompt_tokens", self.truncate_prompt_tokens, -1, 1 << 31)
            if self.truncate_prompt_tokens == 0:
                raise InvalidRequest(
                    "`truncate_prompt_tokens` 0 would leave no prompt.", param="truncate_prompt_tokens"
                )
        if self.truncation_side not in ("left", "right"):
            raise InvalidRequest('`truncation_side` must be "left" or "right".', param="truncation_side")
        named = self.logprob_token_ids
        if named is not None:
            _whole("the number of `logprob_token_ids`", len(named), 1, MAX_NAMED_IDS)
            if self.logprobs and self.logprobs != len(named):
                raise InvalidRequest(
                    f"`logprobs` ({self.logprobs}) must be the number of `logprob_token_ids` ({len(named)}), or None.",
                    param="logprobs",
                )
        _whole("prompt_logprob_start", self.prompt_logprob_start, 0, 1 << 31)
        if self.prompt_logprob_start and self.prompt_logprob_token_ids is None:
            raise InvalidRequest(
                "`prompt_logprob_start` needs `prompt_logprob_token_ids`.", param="prompt_logprob_start"
            )
        if self.prompt_logprobs is not None and self.prompt_logprob_token_ids is not None:
            raise InvalidRequest(
                "`prompt_logprobs` and `prompt_logprob_token_ids` exclude each other.", param="prompt_logprobs"
            )
        if self.thinking_token_budget is not None:
            _whole("thinking_token_budget", self.thinking_token_budget, -1, 1 << 31)
        _ = self.repetition_rule

    @property
    def num_sequences(self) -> int:
        """How many are generated for a prompt."""
        return self.n if self.best_of is None else self.best_of

    @property
    def repetition_rule(self) -> RepetitionDetection | None:
        """`repetition_detection`, checked."""
        rule, name = self.repetition_detection, "repetition_detection"
        if isinstance(rule, Mapping):
            unknown = rule.keys() - {"max_pattern_size", "min_pattern_size", "min_count"}
            if unknown:
                raise InvalidRequest(f"`{name}` has no {sorted(unknown)[0]!r}.", param=name)
            rule = RepetitionDetection(**rule)
        if rule is None:
            return None
        for part in ("max_pattern_size", "min_pattern_size", "min_count"):
            _whole(f"{name}.{part}", getattr(rule, part), 0, MAX_PATTERN)
        if rule.fault:
            raise InvalidRequest(f"`{name}`: {rule.fault}.", param=name)
        return rule

    def cut(self, ids: list[int], max_model_len: int) -> list[int]:
        """`ids`, cut to `truncate_prompt_tokens`; -1 stands for what the context leaves beside `max_tokens`."""
        most = self.truncate_prompt_tokens
        if most is None:
            return ids
        if most < 0:
            most = max(1, max_model_len - (self.max_tokens or 1))
        return ids[:most] if self.truncation_side == "right" else ids[-most:]

    @property
    def stops(self) -> tuple[str, ...]:
        """`stop` as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def constraint(self) -> tuple[str, str] | None:
        """What an answer must follow, as (kind, text) for the tokenizer's `grammar`."""
        wanted = {key: value for key, value in (self.structured_outputs or {}).items() if value is not None}
        if not wanted and self.structured_outputs is None:
            return None
        kind, value = next(iter(wanted.items()), ("", None))
        if len(wanted) != 1 or kind not in _STRUCTURES:
            raise InvalidRequest(
                f"`structured_outputs` needs exactly one of {', '.join(_STRUCTURES)}.", param="structured_outputs"
            )
        if kind == "json_object":
            return "json", '{"type": "object"}'
        if kind in ("json", "choice", "structural_tag") and not isinstance(value, str):
            return kind, json.dumps(value, ensure_ascii=False)
        return kind, str(value)

    def _thinking(self, tokenizer: Speller, prompt: Sequence[int]) -> ThinkingBudget | None:
        """`thinking_token_budget` for one prompt; -1 is no bound."""
        tokens = self.thinking_token_budget
        if tokens is None or tokens < 0:
            return None
        opening, closing = (tokenizer.token_id(mark) for mark in THINKING_MARKS)
        if opening is None or closing is None:
            raise InvalidRequest(
                f"`thinking_token_budget` needs a model with the tokens {' and '.join(THINKING_MARKS)}.",
                param="thinking_token_budget",
            )
        return ThinkingBudget.behind(prompt, tokens, opening, closing)

    def translated(self, tokenizer: Speller, prompt: Sequence[int], max_tokens: int) -> core.SamplingParams:
        """For one sequence that answers `prompt`; `max_tokens` is what `max_tokens` None stands for."""
        biases = dict(self.logit_bias or {})
        for name, ids in (
            ("stop_token_ids", self.stop_token_ids or ()),
            ("logit_bias", biases),
            ("allowed_token_ids", self.allowed_token_ids or ()),
            ("logprob_token_ids", self.logprob_token_ids or ()),
        ):
            if not all(type(token) is int and 0 <= token < tokenizer.vocab_size for token in ids):
                raise InvalidRequest(f"`{name}` has a token id outside 0 to {tokenizer.vocab_size - 1}.", param=name)
        return core.SamplingParams(
            max_tokens=max_tokens if self.max_tokens is None else self.max_tokens,
            min_tokens=self.min_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=max(0, self.top_k),
            min_p=self.min_p,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            seed=None if self.seed == -1 else self.seed,
            stop=self.stops,
            stop_token_ids=tuple(self.stop_token_ids or ()),
            include_stop_str_in_output=self.include_stop_str_in_output,
            ignore_eos=self.ignore_eos,
            logprobs=self.num_logprobs,
            skip_special_tokens=self.skip_special_tokens,
            logit_bias=tuple(sorted(biases.items())),
            allowed_token_ids=tuple(sorted(set(self.allowed_token_ids or ()))),
            bad_words_token_ids=tokenizer.spellings(self.bad_words) if self.bad_words else (),
            prompt_logprobs=self.prompt_logprobs,
            skip_reading_prefix_cache=self.skip_reading_prefix_cache,
            repetition_detection=self.repetition_rule,
            detokenize=self.detokenize,
            spaces_between_special_tokens=self.spaces_between_special_tokens,
            logprob_token_ids=tuple(self.logprob_token_ids or ()),
            prompt_logprob_token_ids=self._scored_ids(tokenizer.vocab_size),
            prompt_logprob_start=self.prompt_logprob_start,
            thinking=self._thinking(tokenizer, prompt),
        )

    @property
    def num_logprobs(self) -> int | None:
        """Alternatives of each token of the answer; None when no log-probability is needed."""
        if self.logprob_token_ids is not None:
            return len(self.logprob_token_ids)
        return 0 if self.logprobs is None and self.num_sequences > self.n else self.logprobs

    def _scored_ids(self, vocab_size: int) -> tuple[tuple[int, ...], ...] | None:
        """`prompt_logprob_token_ids` as rows of one length: shorter ones are filled up with -1."""
        given, name = self.prompt_logprob_token_ids, "prompt_logprob_token_ids"
        if given is None:
            return None
        rows = [[int(token) for token in row] for row in given]
        width = max(map(len, rows), default=0)
        _whole(f"the width of `{name}`", width, 0, MAX_NAMED_IDS)
        if not all(-1 <= token < vocab_size for row in rows for token in row):
            raise InvalidRequest(f"`{name}` has a token id outside -1 to {vocab_size - 1}.", param=name)
        return tuple((*row, *[-1] * (width - len(row))) for row in rows)


def _whole(name: str, value: object, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        raise InvalidRequest(f"`{name}` must be a whole number from {least} to {most}, not {value!r}.", param=name)


def _number(name: str, value: object, least: float, most: float, *, above: bool = False) -> None:
    right = isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most
    if not right or value == float("inf") or (above and value == least):
        bound = f"above {least:g}" if above else f"at least {least:g}"
        bound += "" if most == float("inf") else f" and at most {most:g}"
        raise InvalidRequest(f"`{name}` must be {bound}, not {value!r}.", param=name)
