"""Outputs of the engine -> the JSON of OpenAI's answers (whole answers here, the chunks of streams in sse.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headrace.core.request import FinishReason
from headrace.engine.async_engine import Output, TokenLogprob
from headrace.server.protocol import Generation
from headrace.server.state import Tokenizer

LOWEST_LOGPROB = -9999.0  # JSON has no -Infinity; vLLM prints this number


class Usage:
    """Tokens so far.  The prompt of n sequences counts once; the end token counts as generated."""

    def __init__(self, generation: Generation) -> None:
        self._n = generation.n
        self._prompt = sum(len(request.prompt_token_ids) for request in generation.requests[:: generation.n])
        self._cached = [0] * len(generation.requests)
        self._output = [0] * len(generation.requests)

    def add(self, index: int, output: Output) -> None:
        self._cached[index] = output.num_cached_tokens
        self._output[index] = output.num_output_tokens

    def as_json(self) -> dict[str, Any]:
        completion = sum(self._output)
        return {
            "prompt_tokens": self._prompt,
            "completion_tokens": completion,
            "total_tokens": self._prompt + completion,
            # The first sequence of a prompt tells what was cached before; its siblings hit what it computed.
            "prompt_tokens_details": {"cached_tokens": sum(self._cached[:: self._n])},
        }


def chat_logprobs(logprobs: Sequence[TokenLogprob], tokenizer: Tokenizer, num_top: int) -> dict[str, Any]:
    """OpenAI's chat form: one object per token, with its bytes and `num_top` alternatives."""

    def entry(token_id: int, logprob: float) -> dict[str, Any]:
        text = tokenizer.token_text(token_id)
        return {
            "token": text,
            "logprob": max(logprob, LOWEST_LOGPROB),
            "bytes": list(text.encode("utf-8", errors="replace")),
        }

    return {
        "content": [
            {**entry(item.token_id, item.logprob), "top_logprobs": [entry(*top) for top in item.top[:num_top]]}
            for item in logprobs
        ]
    }


def completion_logprobs(
    logprobs: Sequence[TokenLogprob], tokenizer: Tokenizer, num_top: int, offset: int
) -> tuple[dict[str, Any], int]:
    """The completions form: parallel lists; `offset` is where the first token's text starts.  Also the next offset."""
    tokens: list[str] = []
    values: list[float] = []
    tops: list[dict[str, float]] = []
    offsets: list[int] = []
    for item in logprobs:
        text = tokenizer.token_text(item.token_id)
        tokens.append(text)
        values.append(max(item.logprob, LOWEST_LOGPROB))
        # The chosen token is always among the alternatives, as in vLLM, even when it ranks below them.
        top = {tokenizer.token_text(token): max(value, LOWEST_LOGPROB) for token, value in item.top[:num_top]}
        tops.append({**top, text: values[-1]})
        offsets.append(offset)
        offset += len(text)
    return {"text_offset": offsets, "token_logprobs": values, "tokens": tokens, "top_logprobs": tops}, offset


class WholeAnswer:
    """Collects the outputs of all choices and renders them as one object."""

    def __init__(self, generation: Generation, tokenizer: Tokenizer) -> None:
        self._generation = generation
        self._tokenizer = tokenizer
        self._usage = Usage(generation)
        count = len(generation.requests)
        self._texts: list[list[str]] = [[] for _ in range(count)]
        self._logprobs: list[list[TokenLogprob]] = [[] for _ in range(count)]
        self._ends: list[Output | None] = [None] * count

    def add(self, index: int, output: Output) -> None:
        self._usage.add(index, output)
        self._texts[index].append(output.text)
        self._logprobs[index].extend(output.logprobs or ())
        if output.finish_reason is not None:
            self._ends[index] = output

    def as_json(self) -> dict[str, Any]:
        generation = self._generation
        return {
            "id": generation.request_id,
            "object": "chat.completion" if generation.chat else "text_completion",
            "created": generation.created,
            "model": generation.model,
            "choices": [self._choice(index) for index in range(len(generation.requests))],
            "usage": self._usage.as_json(),
        }

    def _choice(self, index: int) -> dict[str, Any]:
        generation = self._generation
        end = self._ends[index]
        text = "".join(self._texts[index])
        num_top = generation.num_logprobs
        choice: dict[str, Any] = {"index": index}
        if generation.chat:
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
            choice["logprobs"] = (
                None if num_top is None else chat_logprobs(self._logprobs[index], self._tokenizer, num_top)
            )
        else:
            choice["text"] = generation.echo_of(index) + text
            choice["logprobs"] = (
                None if num_top is None else completion_logprobs(self._logprobs[index], self._tokenizer, num_top, 0)[0]
            )
        # No end means that only the echo was asked for: max_tokens 0 is a length that was reached at once.
        reason = FinishReason.LENGTH if end is None or end.finish_reason is None else end.finish_reason
        choice["finish_reason"] = reason.value
        choice["stop_reason"] = None if end is None else end.stop_reason
        return choice
