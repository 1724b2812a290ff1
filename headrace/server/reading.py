"""How the text of a chat answer is read: reasoning split off, tool calls found, the rest is content."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from headrace.core.request import FinishReason
from headrace.server.reasoning import ReasoningSplitter
from headrace.server.tools import CallDelta, NamedCall, ToolParser, parser_of


@dataclass(frozen=True, slots=True)
class Reading:
    """Decided once for a request; every choice has its own reader.

    begins_inside   whether the answer begins with reasoning; None: reasoning is not split off
    shows_reasoning False leaves it out of the answer
    calls           form of the tool calls: hermes, llama3_json, list, named; "" for none
    names           functions that may be called
    parallel        False keeps only the first call
    """

    begins_inside: bool | None = None
    shows_reasoning: bool = True
    calls: str = ""
    names: tuple[str, ...] = ()
    parallel: bool = True


@dataclass(frozen=True, slots=True)
class Part:
    """What a piece of text adds to an answer."""

    content: str
    reasoning: str = ""
    calls: tuple[CallDelta, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.content or self.reasoning or self.calls)


class Reader:
    """Reads one choice piece by piece."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._splitter: ReasoningSplitter | None = None
        self._parser: ToolParser | None = None
        if reading.begins_inside is not None:
            self._splitter = ReasoningSplitter(begins_inside=reading.begins_inside)
        if reading.calls == "named":
            self._parser = NamedCall(reading.names[0])
        elif reading.calls:
            self._parser = parser_of(reading.calls, frozenset(reading.names))
        self._ids: list[str] = []

    @property
    def withholds(self) -> bool:
        """Whether text may stay inside because it may belong to reasoning or to a call."""
        return self._splitter is not None or self._parser is not None

    def push(self, text: str, *, last: bool) -> Part:
        """Add text; return what is certain; with `last` everything."""
        reasoning, content = self._split(text, last)
        calls: list[CallDelta] = []
        if self._parser is not None:
            content, calls = self._parser.push(content) if content else ("", [])
            if last:
                rest, more = self._parser.flush()
                content, calls = content + rest, calls + more
        if not self._reading.parallel:
            calls = [call for call in calls if call.index == 0]
        for call in calls:
            if call.name is not None:
                self._ids.append(f"call_{uuid.uuid4().hex[:24]}")
        return Part(content, reasoning if self._reading.shows_reasoning else "", tuple(calls))

    def finish_reason(self, reason: FinishReason) -> str:
        """`tool_calls` when the answer made calls and was not cut."""
        return "tool_calls" if self._ids and reason is FinishReason.STOP else reason.value

    def delta(self, part: Part, *, first: bool, last: bool) -> dict[str, Any]:
        """OpenAI's `delta` of a part."""
        delta: dict[str, Any] = {"role": "assistant"} if first else {}
        if part.reasoning:
            # Two names: the one of DeepSeek and older vLLM, and the one of vLLM now.
            delta |= {"reasoning_content": part.reasoning, "reasoning": part.reasoning}
        if part.content or (not part and (first or not last)):
            delta["content"] = part.content
        if part.calls:
            delta["tool_calls"] = [self._call_delta(call) for call in part.calls]
        return delta

    def message(self, part: Part) -> dict[str, Any]:
        """OpenAI's `message` of a whole answer."""
        message: dict[str, Any] = {"role": "assistant", "content": part.content, "refusal": None}
        if self._splitter is not None and self._reading.shows_reasoning:
            message["reasoning_content"] = message["reasoning"] = part.reasoning or None
        if self._ids:
            arguments = ["" for _ in self._ids]
            names = [call.name for call in part.calls if call.name is not None]
            for call in part.calls:
                arguments[call.index] += call.arguments
            message["content"] = part.content or None
            message["tool_calls"] = [
                {"id": call_id, "type": "function", "function": {"name": name, "arguments": text}}
                for call_id, name, text in zip(self._ids, names, arguments, strict=True)
            ]
        return message

    def _split(self, text: str, last: bool) -> tuple[str, str]:
        if self._splitter is None:
            return "", text
        reasoning, content = self._splitter.push(text)
        if last:
            more_reasoning, more = self._splitter.flush()
            return reasoning + more_reasoning, content + more
        return reasoning, content

    def _call_delta(self, call: CallDelta) -> dict[str, Any]:
        if call.name is None:
            return {"index": call.index, "function": {"arguments": call.arguments}}
        return {
            "index": call.index,
            "id": self._ids[call.index],
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
