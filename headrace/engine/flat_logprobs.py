"""Log-probabilities of an answer or a prompt under vLLM's names: a table a token, or all of them in flat lists."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import overload


@dataclass(frozen=True, slots=True)
class Logprob:
    """Natural log-probability of a token at one position; `rank` 1 is the most likely token there."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


Table = dict[int, Logprob]


@dataclass(slots=True)
class FlatLogprobs(Sequence["Table | None"]):
    """vLLM's FlatLogprobs: six lists of numbers and texts instead of a dictionary of objects for each token.

    Position p holds the entries start_indices[p] to end_indices[p] of the other four.  Reads like the list of tables
    that it stands for; a position without entries (the first of a prompt) is an empty table.
    """

    start_indices: list[int] = field(default_factory=list)
    end_indices: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    ranks: list[int | None] = field(default_factory=list)
    decoded_tokens: list[str | None] = field(default_factory=list)

    @classmethod
    def of(cls, tables: Iterable[Table | None]) -> FlatLogprobs:
        flat = cls()
        for table in tables:
            flat.start_indices.append(len(flat.token_ids))
            for token, entry in (table or {}).items():
                flat.token_ids.append(token)
                flat.logprobs.append(entry.logprob)
                flat.ranks.append(entry.rank)
                flat.decoded_tokens.append(entry.decoded_token)
            flat.end_indices.append(len(flat.token_ids))
        return flat

    def __len__(self) -> int:
        return len(self.start_indices)

    @overload
    def __getitem__(self, place: int) -> Table: ...
    @overload
    def __getitem__(self, place: slice) -> FlatLogprobs: ...
    def __getitem__(self, place: int | slice) -> Table | FlatLogprobs:
        if isinstance(place, slice):
            return FlatLogprobs.of(self[each] for each in range(*place.indices(len(self))))
        return {
            self.token_ids[i]: Logprob(self.logprobs[i], self.ranks[i], self.decoded_tokens[i])
            for i in range(self.start_indices[place], self.end_indices[place])
        }
