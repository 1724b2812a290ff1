"""N-gram speculation: what followed the sequence's last few tokens before is guessed to follow them again.

The guesses (drafts) are computed in the same step as the token before them, and the model's own choices say how many
were right (prompt lookup, Saxena 2023).  The rule is that of vLLM's n-gram proposer: the longest n-gram that occurred
before, at its earliest place.
"""

from __future__ import annotations

from collections.abc import Sequence as Ids
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.core.batch import Chunk
from headrace.errors import ConfigError

if TYPE_CHECKING:
    from headrace.core.state import NextStep, State


@dataclass(frozen=True, slots=True)
class Speculation:
    """How drafts are found, under vLLM's names; ConfigError names the field at fault.

    num_speculative_tokens   most drafts of one sequence in one step
    prompt_lookup_max        tokens at the end of a sequence that are looked up first
    prompt_lookup_min        fewest that are looked up when more were not found
    """

    num_speculative_tokens: int
    prompt_lookup_max: int = 5
    prompt_lookup_min: int = 5

    def __post_init__(self) -> None:
        for name in ("num_speculative_tokens", "prompt_lookup_max", "prompt_lookup_min"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ConfigError(f"{name} is {value!r}; it must be a whole number of at least 1")
        if self.prompt_lookup_min > self.prompt_lookup_max:
            raise ConfigError(
                f"prompt_lookup_min ({self.prompt_lookup_min}) must be at most prompt_lookup_max "
                f"({self.prompt_lookup_max})"
            )


class NgramIndex:
    """Where each n-gram of one growing sequence ended first.

    A new token costs a few dictionary operations, however long the sequence is.  Memory: one entry for each different
    n-gram of `least` tokens, and of longer ones only those that repeat one token less (text: 1.3 to 2 entries a token).
    """

    # One table a length, least .. most.  A gram of n + 1 tokens is (where its last n tokens ended first, the token
    # before them).  An n-gram seen once is not entered at n + 1; it is when it comes again, before the newcomer:
    #
    #     tokens    x a b ... y a b          table 2: (a, b) -> 2
    #               0 1 2     7 8 9          table 3: (2, x) -> 2, then (2, y) -> 9
    #
    # So tables fill up in order of position, and the first entry is the earliest.
    __slots__ = ("_least", "_match", "_num_tokens", "_tables")

    def __init__(self, least: int, most: int) -> None:
        self._least = least
        self._tables: list[dict[tuple[int, ...], int]] = [{} for _ in range(least, most + 1)]
        self._num_tokens = 0
        self._match = -1

    def propose(self, tokens: Ids[int], count: int) -> tuple[int, ...]:
        """At most `count` tokens that may follow `tokens`; none when their end is new.

        `tokens` must begin with those of the last call.
        """
        for end in range(self._num_tokens, len(tokens)):
            self._match = self._enter(tokens, end)
        self._num_tokens = len(tokens)
        if self._match < 0:
            return ()
        return tuple(tokens[self._match + 1 : self._match + 1 + count])

    def _enter(self, tokens: Ids[int], end: int) -> int:
        """Enter the n-grams that end at `end`; return where the longest known one ended first, -1 for none."""
        length, match = self._least, -1
        if end + 1 < length:
            return -1
        key = tuple(tokens[end + 1 - length : end + 1])
        for table in self._tables:
            if match >= 0:  # `length` tokens are known: both their places go on with one more, the earlier one first
                if match >= length:
                    table.setdefault((match, tokens[match - length]), match)
                if end < length:
                    break
                key = (match, tokens[end - length])
                length += 1
            first = table.setdefault(key, end)
            if first == end:
                break
            match = first
        return match


def add_drafts(state: State, step: NextStep) -> None:
    """Put drafts behind the decodes of a planned step, with what budget and blocks everybody else has left.

    Last of all and never at anyone's cost: no decode waits, no prompt gets less, nobody is preempted for a guess.
    `computed` does not count drafts; whoever commits the step says how many were right.
    """
    config, blocks = state.config, state.blocks
    speculation, size = config.speculation, config.block_size
    assert speculation is not None
    most = speculation.num_speculative_tokens
    if config.long_prefill_token_threshold:
        most = min(most, config.long_prefill_token_threshold - 1)
    for index, chunk in enumerate(step.chunks):
        sequence = chunk.sequence
        if chunk.start < sequence.prefill_length:
            continue
        # The step gives one token more than there are right drafts, and none may pass the limit.
        count = min(most, step.left, sequence.length_limit - sequence.num_tokens - 1)
        room = (len(sequence.block_table) + blocks.num_free) * size - sequence.num_tokens
        count = min(count, room)
        if count < 1:
            continue
        if sequence.ngrams is None:
            sequence.ngrams = NgramIndex(speculation.prompt_lookup_min, speculation.prompt_lookup_max)
        drafts = sequence.ngrams.propose(sequence.token_ids, count)
        if drafts:
            blocks.grow(sequence, sequence.num_tokens + len(drafts))
            step.chunks[index] = Chunk(sequence, chunk.start, 1 + len(drafts), True, drafts)
            step.left -= len(drafts)
