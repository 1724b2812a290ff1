"""Splits `<think>reasoning</think>answer` while it arrives.  Pure: pieces of text in, pieces of text out."""

from __future__ import annotations

from enum import Enum

OPEN, CLOSE = "<think>", "</think>"
# name -> whether the answer begins with reasoning even where neither prompt nor answer says `<think>`
PARSERS = {"deepseek_r1": True, "qwen3": False}


class _At(Enum):
    START = "start"
    REASONING = "reasoning"
    ANSWER = "answer"


def held(text: str, tag: str) -> int:
    """How many characters at the end of `text` may be the beginning of `tag`."""
    return next((size for size in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:size])), 0)


class ReasoningSplitter:
    """`begins_inside`: the text is reasoning from its first character (a leading `<think>` is left out anyway).

    Pieces come back as (reasoning, answer).  Joined they are the whole text without the two marks; where they are cut
    does not depend on where the text was cut.
    """

    def __init__(self, *, begins_inside: bool) -> None:
        self._begins_inside = begins_inside
        self._at = _At.START
        self._held = ""

    def push(self, text: str) -> tuple[str, str]:
        """Add text; return what is certain."""
        text, self._held = self._held + text, ""
        if self._at is _At.START:
            bare = text.lstrip()
            if len(bare) < len(OPEN) and OPEN.startswith(bare):
                self._held = text
                return "", ""
            opens = bare.startswith(OPEN)
            self._at = _At.REASONING if opens or self._begins_inside else _At.ANSWER
            text = bare[len(OPEN) :] if opens else text
        if self._at is _At.ANSWER:
            return "", text
        reasoning, close, answer = text.partition(CLOSE)
        if close:
            self._at = _At.ANSWER
            return reasoning, answer
        keep = held(text, CLOSE)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], ""

    def flush(self) -> tuple[str, str]:
        """The text ends here."""
        text, self._held = self._held, ""
        inside = self._at is _At.REASONING or (self._at is _At.START and self._begins_inside)
        return (text, "") if inside else ("", text)
