"""Outputs of the engine -> server-sent events, as OpenAI's clients and benchmark clients read them.

What clients measure decides the framing.  A benchmark client starts its TTFT at the first event with choices and counts
a gap per event, so: nothing with choices is sent before the first token, the role travels in the first token's own
delta, every output is one event, and no event has an empty delta except the one that only ends a choice.
"""

from __future__ import annotations

import json
from typing import Any

from headrace.engine.async_engine import Output, TokenLogprob
from headrace.server.protocol import Generation
from headrace.server.reading import Reader, Reading
from headrace.server.responses import LogprobForms, Usage
from headrace.server.state import Tokenizer

DONE = b"data: [DONE]\n\n"
# Line ends for str.splitlines, though not for SSE: raw ones would cut an event in half in such clients.
_LINE_ENDS = {"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def event(value: dict[str, Any]) -> bytes:
    """One frame: `data: {json}`, then an empty line."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for raw, escaped in _LINE_ENDS.items():
        if raw in text:
            text = text.replace(raw, escaped)
    return f"data: {text}\n\n".encode("utf-8", errors="replace")


class Chunks:
    """The events of one streamed answer.  Keeps what later chunks need: usage, roles sent, text offsets."""

    def __init__(self, generation: Generation, tokenizer: Tokenizer) -> None:
        self._generation = generation
        self._forms = LogprobForms(generation, tokenizer)
        self._usage = Usage(generation)
        self._begun = [False] * len(generation.requests)
        self._offsets = [0] * len(generation.requests)
        self._readers = [Reader(generation.reading or Reading()) for _ in generation.requests]
        self._held: list[list[TokenLogprob]] = [[] for _ in generation.requests]
        self._held_ids: list[list[int]] = [[] for _ in generation.requests]
        self._head = {
            "id": generation.request_id,
            "object": "chat.completion.chunk" if generation.chat else "text_completion",
            "created": generation.created,
            "model": generation.model,
        }

    def chunk(self, index: int, output: Output) -> bytes:
        """The event of one output: its text, and the finish reason if it is the last.

        Empty when nothing of it can be shown yet, because it may belong to a tool call or to reasoning.  A token whose
        text is held back, half a character, has an event with an empty text, as in vLLM: clients time tokens by them.
        """
        self._usage.add(index, output)
        choice: dict[str, Any] = {"index": index}
        finish_reason = None if output.finish_reason is None else output.finish_reason.value
        first = not self._begun[index]
        if self._generation.chat:
            reader = self._readers[index]
            part = reader.push(output.text, last=output.finish_reason is not None)
            if not part and reader.withholds and output.finish_reason is None:
                self._held[index].extend(output.logprobs or ())
                self._held_ids[index].extend(output.token_ids)
                return b""
            choice["delta"] = reader.delta(part, first=first, last=output.finish_reason is not None)
            if output.finish_reason is not None:
                finish_reason = reader.finish_reason(output.finish_reason)
        else:
            echo = self._generation.echo_of(index) if first else ""
            choice["text"] = echo + ("" if self._generation.only_echo else output.text)
        if self._generation.returns_ids:
            choice["token_ids"] = self._ids_of(index, output)
            if first:
                choice["prompt_token_ids"] = list(self._generation.requests[index].prompt_token_ids)
        self._begun[index] = True
        choice["logprobs"] = self._logprobs(index, output)
        choice["finish_reason"] = finish_reason
        if output.finish_reason is not None:
            choice["stop_reason"] = output.stop_reason
        if self._generation.only_echo:
            choice |= {"finish_reason": "length", "stop_reason": None}
        return self._event([choice], self._generation.continuous_usage)

    def only_echo(self, index: int) -> bytes:
        """The single chunk of a completion that needs no engine."""
        text = self._generation.echo_of(index)
        choice = {"index": index, "text": text, "logprobs": None, "finish_reason": "length", "stop_reason": None}
        return self._event([choice], self._generation.continuous_usage)

    def usage(self) -> bytes:
        """The last event before the end when `include_usage` was asked for, else nothing."""
        return self._event([], True) if self._generation.include_usage else b""

    def _logprobs(self, index: int, output: Output) -> dict[str, Any] | None:
        if self._generation.num_logprobs is None or output.logprobs is None:
            return None
        if self._generation.chat:
            held, self._held[index] = self._held[index], []
            return self._forms.chat([*held, *output.logprobs])
        value, self._offsets[index] = self._forms.completion(index, output, self._offsets[index])
        return value

    def _ids_of(self, index: int, output: Output) -> list[int]:
        """The tokens of this chunk, and of what was held before it."""
        held, self._held_ids[index] = self._held_ids[index], []
        return [] if self._generation.only_echo else [*held, *output.token_ids]

    def _event(self, choices: list[dict[str, Any]], with_usage: bool) -> bytes:
        value: dict[str, Any] = {**self._head, "choices": choices}
        if with_usage:
            value["usage"] = self._usage.as_json()
        elif self._generation.include_usage:
            value["usage"] = None
        return event(value)
