"""Tool calls in a model's text, found while it arrives.  Pure: pieces of text in, content and pieces of calls out.

Three forms: Hermes (`<tool_call>{json}</tool_call>`, between other text), Llama 3 (the whole answer is JSON objects),
and what a grammar enforces for `tool_choice` "required" (a JSON list) or a named function (its arguments alone).
What turns out to be no call is content, to the last character.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from headrace.server.call_scanner import CallScanner
from headrace.server.reasoning import held

OPEN, CLOSE = "<tool_call>", "</tool_call>"
PYTHON_TAG = "<|python_tag|>"


@dataclass(frozen=True, slots=True)
class CallDelta:
    """News of one call; `name` comes once, with the first."""

    index: int
    name: str | None
    arguments: str


Parts = tuple[str, list[CallDelta]]


class ToolParser(Protocol):
    def push(self, text: str) -> Parts: ...
    def flush(self) -> Parts: ...


class _At(Enum):
    TEXT = "text"
    CALL = "call"
    AFTER = "after"  # a call has ended; its closing mark, or the next call, may follow


class _Calls:
    """What the parsers share: the call being read, and its raw text until it is certain that it is one."""

    def __init__(self, accepts: Callable[[str], bool], *, strict: bool) -> None:
        self._accepts = accepts
        self._strict = strict
        self._at = _At.TEXT
        self._held = ""
        self._raw = ""
        self._index = -1
        self._between = False  # behind a call, with nothing but white space since
        self._content: list[str] = []
        self._deltas: list[CallDelta] = []
        self._scanner = CallScanner(accepts, strict=strict)

    def push(self, text: str) -> Parts:
        """Add text; return what is certain."""
        text, self._held = self._held + text, ""
        while text:
            if self._at is _At.CALL:
                text = self._read_call(text)
            elif self._at is _At.AFTER:
                text = self._read_after(text)
            else:
                text = self._read_text(text)
        return self._take()

    def flush(self) -> Parts:
        """The text ends here: what was held is no mark, and a call without a name is none."""
        if self._at is _At.CALL and self._scanner.name is None:
            self._content.append(self._raw)
        elif self._at is _At.TEXT and not (self._between and not self._held.strip()):
            self._content.append(self._held)
        self._held = self._raw = ""
        return self._take()

    def _take(self) -> Parts:
        content, deltas = "".join(self._content), self._deltas
        self._content, self._deltas = [], []
        return content, deltas

    def _begin(self, mark: str) -> None:
        self._at, self._raw = _At.CALL, mark
        self._scanner = CallScanner(self._accepts, strict=self._strict)

    def _read_call(self, text: str) -> str:
        """Read the call as far as it goes; returns what is behind it."""
        scanner, was_known = self._scanner, self._scanner.name is not None
        size = scanner.push(text)
        if not was_known:
            self._raw += text[:size]
        if scanner.name is not None:
            arguments = scanner.take_arguments()
            if not was_known:
                self._index += 1
                self._deltas.append(CallDelta(self._index, scanner.name, arguments))
            elif arguments:
                self._deltas.append(CallDelta(self._index, None, arguments))
        if scanner.broken and scanner.name is None:
            self._content.append(self._raw)
            self._at = _At.TEXT
            self._between = False
            self._on_no_call()
        elif scanner.broken or scanner.done:
            self._at = _At.AFTER
        return text[size:]

    def _on_no_call(self) -> None:
        """What looked like a call is content."""

    def _read_after(self, text: str) -> str:
        raise NotImplementedError

    def _read_text(self, text: str) -> str:
        raise NotImplementedError


class HermesParser(_Calls):
    """Content with any number of `<tool_call>{"name": ..., "arguments": {...}}</tool_call>` in it."""

    def __init__(self) -> None:
        super().__init__(bool, strict=False)

    def _read_text(self, text: str) -> str:
        before, mark, rest = text.partition(OPEN)
        if not mark:
            keep = held(text, OPEN)
            before, rest = text[: len(text) - keep], text[len(text) - keep :]
        if self._between and not before.strip():  # white space between calls, and behind the last, is no content
            if not mark:
                rest = text
        elif before:
            self._content.append(before)
            self._between = False
        if mark:
            self._begin(OPEN)
            return rest
        self._held = rest
        return ""

    def _read_after(self, text: str) -> str:
        bare = text.lstrip()
        if bare.startswith(CLOSE):
            self._at, self._between = _At.TEXT, True
            return bare[len(CLOSE) :]
        if CLOSE.startswith(bare):
            self._held = text
            return ""
        self._at, self._between = _At.TEXT, True  # the mark is missing
        return text


class JsonCallsParser(_Calls):
    """An answer that is JSON objects, each a call: Llama 3's form; with `is_list` in brackets, as a grammar enforces.

    An answer that begins otherwise, or with an object that calls none of `names`, is content.
    """

    def __init__(self, names: Collection[str], *, is_list: bool = False) -> None:
        super().__init__(names.__contains__, strict=True)
        self._is_list = is_list
        self._is_content = False

    def push(self, text: str) -> Parts:
        if self._is_content:
            return text, []
        return super().push(text)

    def _read_text(self, text: str) -> str:
        bare = text.lstrip()
        if self._is_content:
            self._content.append(text)
            return ""
        if bare.startswith("{"):
            self._begin(text[: len(text) - len(bare)])
            return bare
        if self._is_list and bare.startswith("["):
            return bare[1:]
        if bare.startswith(PYTHON_TAG):
            return bare[len(PYTHON_TAG) :]
        if PYTHON_TAG.startswith(bare):
            self._held = text
            return ""
        self._is_content = True
        self._content.append(text)
        return ""

    def _read_after(self, text: str) -> str:
        bare = text.lstrip(" \t\r\n;,]" if self._is_list else " \t\r\n;,")
        if not bare:
            return ""
        if bare.startswith("{"):
            self._begin("")
            return bare
        self._is_content, self._at = True, _At.TEXT
        self._content.append(bare)
        return ""

    def _on_no_call(self) -> None:
        self._is_content = True


class NamedCall:
    """The whole text is the arguments of one function."""

    def __init__(self, name: str) -> None:
        self._name: str | None = name

    def push(self, text: str) -> Parts:
        name, self._name = self._name, None
        return "", [CallDelta(0, name, text)]

    def flush(self) -> Parts:
        return "", []


PARSERS = ("hermes", "llama3_json")


def parser_of(form: str, names: Collection[str]) -> ToolParser:
    """hermes, llama3_json, or "list" (for "required")."""
    if form == "hermes":
        return HermesParser()
    return JsonCallsParser(names, is_list=form == "list")
