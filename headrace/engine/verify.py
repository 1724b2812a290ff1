"""Drafts against the model: each row of a chunk with drafts is sampled as if the drafts before it were right.

A token is a pure function of the logits and of (seed, position) (see sampler.py), so what is sampled behind right
drafts is, to the bit, what would have been sampled one by one.  A draft is right when it is that token.  For drafts
without probabilities of their own this is rejection sampling (Leviathan, Kalman, Matias 2023): a draft is kept with
the probability that the model gives it, and what replaces it has the rest of the model's distribution.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Protocol

from headrace.core.batch import Chunk
from headrace.core.request import Request
from headrace.core.sequence import Sequence as Running


class Row(Protocol):
    """What choosing the next token asks of a sequence: `core.Sequence`, or one as it may soon be."""

    sampling_state: object | None

    @property
    def request(self) -> Request: ...
    @property
    def request_id(self) -> str: ...
    @property
    def order(self) -> int: ...
    @property
    def end_ids(self) -> frozenset[int]: ...
    @property
    def num_tokens(self) -> int: ...
    @property
    def num_output_tokens(self) -> int: ...
    @property
    def token_ids(self) -> list[int]: ...
    @property
    def output_token_ids(self) -> list[int]: ...


class Ahead:
    """A sequence as it will be if its first drafts are right.  It shares the sequence's sampling state."""

    __slots__ = ("_drafts", "_output", "_sequence")

    def __init__(self, sequence: Running, drafts: tuple[int, ...]) -> None:
        self._sequence = sequence
        self._drafts = drafts
        self._output: list[int] | None = None

    @property
    def sampling_state(self) -> object | None:
        return self._sequence.sampling_state

    @sampling_state.setter
    def sampling_state(self, state: object | None) -> None:
        self._sequence.sampling_state = state

    @property
    def request(self) -> Request:
        return self._sequence.request

    @property
    def request_id(self) -> str:
        return self._sequence.request_id

    @property
    def order(self) -> int:
        return self._sequence.order

    @property
    def end_ids(self) -> frozenset[int]:
        return self._sequence.end_ids

    @property
    def num_tokens(self) -> int:
        return self._sequence.num_tokens + len(self._drafts)

    @property
    def num_output_tokens(self) -> int:
        return self._sequence.num_output_tokens + len(self._drafts)

    @property
    def token_ids(self) -> list[int]:
        return [*self._sequence.token_ids, *self._drafts]

    @property
    def output_token_ids(self) -> list[int]:
        # Made when a rule asks for it (penalties, bad words, grammars): most requests have none.
        if self._output is None:
            self._output = [*self._sequence.output_token_ids, *self._drafts]
        return self._output


def rows_of(chunk: Chunk) -> list[Row]:
    """Who is sampled for at the last 1 + len(drafts) positions of a chunk, in their order."""
    return [chunk.sequence, *(Ahead(chunk.sequence, chunk.drafts[: n + 1]) for n in range(len(chunk.drafts)))]


def num_right(drafts: Sequence[int], tokens: Sequence[int], unfit: Container[int] = ()) -> int:
    """How many drafts are right, from the first on.

    `tokens` are those of `rows_of`, one more than there are drafts.  A row in `unfit` has no token that may be used:
    the draft before it is left to the next step.
    """
    for count, draft in enumerate(drafts):
        if tokens[count] != draft or count + 1 in unfit:
            return count
    return len(drafts)
