"""What one step computes, and what came of it: the immutable values between scheduler and model runner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from headrace.core.request import FinishReason
from headrace.core.sequence import Sequence


class Chunk(NamedTuple):
    """Positions [start, start + length) of one sequence.

    There is no prefill or decode flag: a decode is length 1 at the end of the sequence.  `samples` is True when
    the chunk reaches the end of the sequence, so its last position's logits are needed.  `drafts` are guesses for the
    tokens behind that end; they count in `length`, and then the logits of all positions of the chunk are needed.
    `sequence` may be read (token ids, block table, sampling parameters) until the batch is committed.
    """

    # A named tuple, like TokenEvent below: one is made per sequence and step, and a frozen dataclass takes
    # three times as long to make.
    sequence: Sequence
    start: int
    length: int
    samples: bool
    drafts: tuple[int, ...] = ()

    @property
    def token_ids(self) -> list[int]:
        """The `length` tokens that are computed, drafts included."""
        sequence, start, length, _, drafts = self
        if not drafts:
            return sequence.tokens_between(start, start + length)
        return [*sequence.tokens_between(start, start + length - len(drafts)), *drafts]


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's work.  `chunks` is in serving order; the other fields tell what changed in this step.

    admitted   sequences that entered `running`
    preempted  sequences that lost their blocks and went back to `waiting`
    dropped    sequences that the policy refused for good in this step (V0's "ignored" groups); they end with
               FinishReason.LENGTH and no further output, and their events come from `commit`

    A batch without chunks needs no model run, but it must be committed like any other.
    """

    step: int
    chunks: tuple[Chunk, ...]
    admitted: tuple[Sequence, ...] = ()
    preempted: tuple[Sequence, ...] = ()
    dropped: tuple[Sequence, ...] = ()

    @property
    def num_tokens(self) -> int:
        return sum([chunk.length for chunk in self.chunks])

    @property
    def num_drafts(self) -> int:
        return sum([len(chunk.drafts) for chunk in self.chunks])


@dataclass(frozen=True, slots=True)
class StepResult:
    """What the model produced for a batch.

    `tokens` holds the sampled token of every chunk with `samples`, in the batch's order.  `failed` maps a
    request id to the reason why its row is unusable (NaN logits, say): that request ends with
    FinishReason.ERROR, the others go on; its entry in `tokens` is ignored (but present).
    `accepted` says, by request id, how many of a chunk's drafts are what the model itself chose, from the first on
    (0 where absent); the chunk's sampled token is the one behind them.
    """

    tokens: tuple[int, ...]
    failed: Mapping[str, str] = field(default_factory=dict)
    accepted: Mapping[str, int] = field(default_factory=dict)


class TokenEvent(NamedTuple):
    """One new token of one sequence, or its end, or both.

    `token_id` is None for an end without a token (dropped, failed).  `stop_reason` is the stop id that
    matched, None for the model's own end token.
    """

    request_id: str
    token_id: int | None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    error: str | None = None
