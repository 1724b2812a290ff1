"""Token ids -> text, one token at a time: never half a character, never a piece of a stop string.

Pure: a `decode` function comes in, text goes out.  Streamed pieces joined equal the one-shot decode of all ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

REPLACEMENT = "\ufffd"
_CONTEXT_TOKENS = 6
_MAX_HELD_TOKENS = 8  # a character is at most 4 bytes, so at most 4 tokens; longer runs are not UTF-8 at all
_MAX_CHARACTER_TOKENS = 4

Decode = Callable[[Sequence[int]], str]
NO_MARKS: Mapping[int, str] = {}


class IncrementalDecoder:
    """Releases text as soon as its bytes are whole characters.

    Tokens cannot be decoded one by one: a character may span tokens, and some decoders treat the first token
    differently (Llama's drops its leading space).  So a short window is decoded, and what it added is the news:

        window:  [ context: text known, sent ][ held: may be part of a character ]
                                              ^ self._read

    When the window's text is whole, everything held is sent and becomes the next context: O(1) per token.
    """

    def __init__(self, decode: Decode, context: Sequence[int] = ()) -> None:
        self._decode = decode
        self._window = list(context[-_CONTEXT_TOKENS:])
        self._read = len(self._window)
        self._sent = len(decode(self._window)) if self._window else 0

    def push(self, token_id: int) -> str:
        """Add a token; return the text that is now certain (often of this token, possibly empty)."""
        self._window.append(token_id)
        text = self._decode(self._window)
        if not text.endswith(REPLACEMENT):
            return self._advance(text, len(self._window))
        if len(self._window) - self._read > _MAX_HELD_TOKENS:
            return self._release_garbage(text)
        return ""

    def push_as(self, token_id: int, text: str) -> str:
        """Add a token whose text is known, whatever the decoder would put around it."""
        news = self.flush() + text
        self._window = [*self._window[-_CONTEXT_TOKENS + 1 :], token_id]
        self._read = len(self._window)
        self._sent = len(self._decode(self._window))
        return news

    def flush(self) -> str:
        """What is held back, half characters as the decoder shows them; the end of the text."""
        if self._read == len(self._window):
            return ""
        return self._advance(self._decode(self._window), len(self._window))

    def _advance(self, text: str, end: int) -> str:
        """`text` is the decode of window[:end]: send its news; window[read:end] becomes the context."""
        news = text[self._sent :]
        if end > self._read:
            context = (
                self._window[self._read : end][-_CONTEXT_TOKENS:] if news else self._window[:end][-_CONTEXT_TOKENS:]
            )
            self._window = context + self._window[end:]
            self._read = len(context)
            self._sent = len(self._decode(context))
        return news

    def _release_garbage(self, text: str) -> str:
        """The window ends in bytes that are no text: send all but a tail that could still become a character."""
        for tail in range(1, _MAX_CHARACTER_TOKENS):
            head = self._decode(self._window[:-tail])
            if head + REPLACEMENT == text and self._decode(self._window[-tail:]) == REPLACEMENT:
                return self._advance(head, len(self._window) - tail)
        return self._advance(text, len(self._window))


class StopMatcher:
    """Finds the stop string that is complete first, and holds back text that may become one.

    One Knuth-Morris-Pratt automaton a stop string: its state is the length of the longest suffix of the text that
    begins the stop string, which is exactly what must be held.  The result does not depend on where tokens end.
    """

    def __init__(self, stops: Iterable[str], *, include: bool = False) -> None:
        self._stops = [(stop, _failure_table(stop)) for stop in stops if stop]
        self._states = [0] * len(self._stops)
        self._include = include
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str, *, armed: bool = True) -> str:
        """Add text; return what may be sent.  `armed` False lets stop strings pass (min_tokens not reached)."""
        if not self._stops:
            return text
        if self.matched is not None:
            return ""
        for i, character in enumerate(text):
            found = self._step(character)
            if found is not None and armed:
                self.matched = found
                whole = self._held + text[: i + 1]
                self._held = ""
                return whole if self._include else whole[: len(whole) - len(found)]
        whole = self._held + text
        keep = max(self._states)
        self._held = whole[len(whole) - keep :]
        return whole[: len(whole) - keep]

    def flush(self) -> str:
        """The text ends here: what was held is no stop string after all."""
        held, self._held = self._held, ""
        return held

    def _step(self, character: str) -> str | None:
        """Advance all automata; the first stop string (in the caller's order) that this character completes."""
        found = None
        for i, (stop, failure) in enumerate(self._stops):
            state = self._states[i]
            while state and stop[state] != character:
                state = failure[state - 1]
            if stop[state] == character:
                state += 1
            if state == len(stop):
                found = found or stop
                state = failure[state - 1]
            self._states[i] = state
        return found


def _failure_table(stop: str) -> list[int]:
    """failure[i]: length of the longest proper prefix of stop[:i+1] that is also its suffix."""
    table = [0] * len(stop)
    length = 0
    for i in range(1, len(stop)):
        while length and stop[i] != stop[length]:
            length = table[length - 1]
        if stop[i] == stop[length]:
            length += 1
        table[i] = length
    return table


class Detokenizer:
    """The text of one request's output.

    decode     ids -> text with nothing skipped; `skipped` ids add no text (special tokens, when asked for)
    context    the prompt's ids (its end is enough): the output's first token continues a text
    stop       stop strings; text before the first is sent, it is not, unless `include_stop`
    min_tokens stop strings complete in the first `min_tokens` tokens do not count
    marks      texts of special tokens that follow each other without what the decoder puts between them
    """

    def __init__(
        self,
        decode: Decode,
        *,
        context: Sequence[int] = (),
        skipped: frozenset[int] = frozenset(),
        stop: Sequence[str] = (),
        include_stop: bool = False,
        min_tokens: int = 0,
        marks: Mapping[int, str] = NO_MARKS,
    ) -> None:
        # `context` may be longer than its end: slice before filtering, a prompt can have 100,000 ids.
        tail = [token for token in list(context[-4 * _CONTEXT_TOKENS :]) if token not in skipped]
        self._decoder = IncrementalDecoder(decode, tail)
        self._matcher = StopMatcher(stop, include=include_stop)
        self._skipped = skipped
        self._min_tokens = min_tokens
        self._num_tokens = 0
        self._marks = marks
        self._behind_mark = False

    @property
    def stopped_by(self) -> str | None:
        """The stop string that ended the text."""
        return self._matcher.matched

    def push(self, token_id: int, *, silent: bool = False) -> str:
        """Add a token; return the text that may be sent.  `silent` counts the token but not its text (a stop id)."""
        self._num_tokens += 1
        if silent or token_id in self._skipped:
            return ""
        mark = self._marks.get(token_id)
        if mark is not None and self._behind_mark:
            text = self._decoder.push_as(token_id, mark)
        else:
            text = self._decoder.push(token_id)
        self._behind_mark = mark is not None
        return self._matcher.push(text, armed=self._num_tokens > self._min_tokens)

    def flush(self) -> str:
        """The output has ended: everything held back that is not behind a stop string."""
        if self._matcher.matched is not None:
            return ""
        rest = self._matcher.push(self._decoder.flush(), armed=self._num_tokens > self._min_tokens)
        return rest if self._matcher.matched is not None else rest + self._matcher.flush()
