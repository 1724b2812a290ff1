"""Outputs of the engine -> the JSON of OpenAI's answers (whole answers here, the chunks of streams in sse.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from headrace.core.request import FinishReason
from headrace.engine.async_engine import Output, TokenLogprob
from headrace.server.protocol import Generation
from headrace.server.reading import Reader, Reading
from headrace.server.state import Tokenizer

LOWEST_LOGPROB = -9999.0  # JSON has no -Infinity; vLLM prints this number


class Usage:
    """Tokens so far.  The prompt of n sequences counts once; the end token counts as generated."""

    def __init__(self, generation: Generation) -> None:
        self._n = generation.num_sequences
        self._hides_output = generation.only_echo
        self._prompt = sum(
            len(request.prompt_token_ids) for request in generation.requests[:: generation.num_sequences]
        )
        self._cached = [0] * len(generation.requests)
        self._output = [0] * len(generation.requests)

    def add(self, index: int, output: Output) -> None:
        self._cached[index] = output.num_cached_tokens
        self._output[index] = 0 if self._hides_output else output.num_output_tokens

    def as_json(self) -> dict[str, Any]:
        completion = sum(self._output)
        return {
            "prompt_tokens": self._prompt,
            "completion_tokens": completion,
            "total_tokens": self._prompt + completion,
            # The first sequence of a prompt tells what was cached before; its siblings hit what it computed.
            "prompt_tokens_details": {"cached_tokens": sum(self._cached[:: self._n])},
        }


class LogprobForms:
    """Log-probabilities of one answer in OpenAI's and vLLM's forms."""

    def __init__(self, generation: Generation, tokenizer: Tokenizer) -> None:
        self._generation = generation
        self._tokenizer = tokenizer
        self._num_top = generation.num_logprobs or 0

    def chat(self, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        """OpenAI's chat form: one object per token, with its bytes and alternatives."""
        return {
            "content": [
                {
                    **self._entry(item.token_id, item.logprob),
                    "top_logprobs": [self._entry(*top) for top in item.top[: self._num_top]],
                }
                for item in logprobs
            ]
        }

    def completion(self, index: int, output: Output, offset: int) -> tuple[dict[str, Any], int]:
        """The completions form, parallel lists of what `output` adds to choice `index`; and the next text offset.

        `offset` is where the first token's text starts.  With `echo` the prompt's tokens come first; the first of all
        has no log-probability.
        """
        items: list[TokenLogprob] = [] if self._generation.only_echo else list(output.logprobs or ())
        tokens: list[str] = []
        values: list[float | None] = []
        tops: list[dict[str, float] | None] = []
        offsets: list[int] = []
        if self._generation.echo is not None and output.prompt_logprobs is not None:
            text = self._name(self._generation.requests[index].prompt_token_ids[0])
            tokens, values, tops, offsets = [text], [None], [None], [offset]
            offset += len(text)
            items[:0] = output.prompt_logprobs
        for item in items:
            text = self._name(item.token_id)
            value = max(item.logprob, LOWEST_LOGPROB)
            tokens.append(text)
            values.append(value)
            # The chosen token is always among the alternatives, as in vLLM, even when it ranks below them.
            top = {self._name(token): max(other, LOWEST_LOGPROB) for token, other in item.top[: self._num_top]}
            tops.append({**top, text: value})
            offsets.append(offset)
            offset += len(text)
        return {"text_offset": offsets, "token_logprobs": values, "tokens": tokens, "top_logprobs": tops}, offset

    def prompt(self, logprobs: Sequence[TokenLogprob]) -> list[dict[str, dict[str, Any]] | None]:
        """vLLM's `prompt_logprobs`: per position, token id -> logprob, rank and text; null for the first."""
        number = self._generation.num_prompt_logprobs or 0
        positions: list[dict[str, dict[str, Any]] | None] = [None]
        for item in logprobs:
            ranked = [(token, value, rank) for rank, (token, value) in enumerate(item.top[:number], start=1)]
            own = (item.token_id, item.logprob, item.rank)
            positions.append(
                {
                    str(token): {
                        "logprob": max(value, LOWEST_LOGPROB),
                        "rank": rank,
                        "decoded_token": self._tokenizer.token_text(token),
                    }
                    for token, value, rank in (*ranked, own)
                }
            )
        return positions

    def scores(self, logprobs: Sequence[TokenLogprob]) -> list[list[float]]:
        """vLLM's `prompt_token_id_logprobs`: a row for each scored token, a column for each id that was asked for."""
        return [[max(value, LOWEST_LOGPROB) for _, value in item.top] for item in logprobs]

    def _name(self, token_id: int) -> str:
        """A token's text, or with `return_tokens_as_token_ids` the id, which tells equal texts apart."""
        return f"token_id:{token_id}" if self._generation.tokens_as_ids else self._tokenizer.token_text(token_id)

    def _entry(self, token_id: int, logprob: float) -> dict[str, Any]:
        return {
            "token": self._name(token_id),
            "logprob": max(logprob, LOWEST_LOGPROB),
            "bytes": list(self._tokenizer.token_text(token_id).encode("utf-8", errors="replace")),
        }


class WholeAnswer:
    """Collects the outputs of all choices and renders them as one object."""

    def __init__(self, generation: Generation, tokenizer: Tokenizer) -> None:
        self._generation = generation
        self._forms = LogprobForms(generation, tokenizer)
        self._usage = Usage(generation)
        count = len(generation.requests)
        self._texts: list[list[str]] = [[] for _ in range(count)]
        self._token_ids: list[list[int]] = [[] for _ in range(count)]
        self._logprobs: list[list[TokenLogprob]] = [[] for _ in range(count)]
        self._prompt_logprobs: list[tuple[TokenLogprob, ...] | None] = [None] * count
        self._ends: list[Output | None] = [None] * count

    def add(self, index: int, output: Output) -> None:
        self._usage.add(index, output)
        self._texts[index].append(output.text)
        self._token_ids[index] += () if self._generation.only_echo else output.token_ids
        self._logprobs[index].extend(output.logprobs or ())
        if output.prompt_logprobs is not None:
            self._prompt_logprobs[index] = output.prompt_logprobs
        if output.finish_reason is not None:
            self._ends[index] = output

    def as_json(self) -> dict[str, Any]:
        generation = self._generation
        answer: dict[str, Any] = {
            "id": generation.request_id,
            "object": "chat.completion" if generation.chat else "text_completion",
            "created": generation.created,
            "model": generation.model,
            "choices": [{**self._choice(index), "index": place} for place, index in enumerate(self._kept())],
            "usage": self._usage.as_json(),
        }
        if generation.chat and generation.num_prompt_logprobs is not None:
            answer["prompt_logprobs"] = self._forms.prompt(self._prompt_logprobs[0] or ())
        if generation.chat and generation.scores_ids:
            answer["prompt_token_id_logprobs"] = self._forms.scores(self._prompt_logprobs[0] or ())
        if generation.chat and generation.returns_ids:
            answer["prompt_token_ids"] = list(generation.requests[0].prompt_token_ids)
        return answer

    def _kept(self) -> list[int]:
        """The sequences that are answered: with `best_of` the likeliest of each prompt, as in older vLLM by the sum of
        their tokens' log-probabilities."""
        generation, kept = self._generation, []
        for first in range(0, len(generation.requests), generation.num_sequences):
            own = list(range(first, first + generation.num_sequences))
            if generation.num_sequences > generation.n:
                own.sort(key=lambda index: -sum(item.logprob for item in self._logprobs[index]))
            kept += own[: generation.n]
        return kept

    def _choice(self, index: int) -> dict[str, Any]:
        generation, end = self._generation, self._ends[index]
        text = "".join(self._texts[index])
        choice: dict[str, Any] = {"index": index, "logprobs": None}
        # No end is known only where nothing but the echo was asked for.
        reason = None if end is None or generation.only_echo else end.finish_reason
        finish_reason = (reason or FinishReason.LENGTH).value
        if generation.chat:
            reader = Reader(generation.reading or Reading())
            choice["message"] = reader.message(reader.push(text, last=True))
            finish_reason = reader.finish_reason(reason or FinishReason.LENGTH)
            if generation.num_logprobs is not None:
                choice["logprobs"] = self._forms.chat(self._logprobs[index])
        else:
            choice["text"] = generation.echo_of(index) + ("" if generation.only_echo else text)
            if generation.num_logprobs is not None and end is not None:
                whole = replace(
                    end, logprobs=tuple(self._logprobs[index]), prompt_logprobs=self._prompt_logprobs[index]
                )
                choice["logprobs"] = self._forms.completion(index, whole, 0)[0]
            if generation.num_prompt_logprobs is not None:
                choice["prompt_logprobs"] = self._forms.prompt(self._prompt_logprobs[index] or ())
            if generation.scores_ids:
                choice["prompt_token_id_logprobs"] = self._forms.scores(self._prompt_logprobs[index] or ())
        if generation.returns_ids:
            choice["token_ids"] = self._token_ids[index]
            if not generation.chat:
                choice["prompt_token_ids"] = list(generation.requests[index].prompt_token_ids)
        choice["finish_reason"] = finish_reason
        choice["stop_reason"] = None if end is None or generation.only_echo else end.stop_reason
        return choice
