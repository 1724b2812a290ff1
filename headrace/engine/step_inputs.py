"""A batch as flat arrays for the native kernels.  All per-request Python of a step before the model is here."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import numpy as np

from headrace.core.batch import Chunk
from headrace.core.sequence import Phase, Sequence


@dataclass(frozen=True, slots=True)
class StepInputs:
    """One step's rows in the batch's order, chunk after chunk.

    token_ids   int64 `[rows]`
    positions   int32 `[rows]`
    slots       where each row's keys and values go: block id * block_size + offset, int64 `[rows]`
    first_rows, starts, lengths, seats   int32 `[chunks]`; a chunk's blocks are in `block_tables[seat]`
    block_tables   int32 `[seats, blocks]`: belongs to the builder, valid until its next call
    """

    token_ids: np.ndarray
    positions: np.ndarray
    slots: np.ndarray
    first_rows: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    seats: np.ndarray
    block_tables: np.ndarray

    @property
    def spans(self) -> tuple[int, ...]:
        """As the native calls take the chunks: their number, four addresses, the block tables and their width."""
        arrays = (self.first_rows, self.starts, self.lengths, self.seats, self.block_tables)
        return (len(self.starts), *(each.ctypes.data for each in arrays), self.block_tables.shape[1])

    @property
    def last_rows(self) -> np.ndarray:
        """The flat row of each chunk's last position."""
        return self.first_rows + self.lengths - 1


class InputBuilder:
    """Keeps the block tables of running sequences as rows of one array and brings only what is new up to date.

    A sequence has a seat from its first chunk until it stops running; there are `max_num_seqs` of them at least.
    """

    def __init__(self, max_num_seqs: int, max_model_len: int, block_size: int) -> None:
        self._block_size = block_size
        self._tables = np.zeros((max_num_seqs, -(-max_model_len // block_size)), dtype=np.int32)
        self._free = list(range(max_num_seqs - 1, -1, -1))
        self._seats: dict[Sequence, tuple[int, list[int]]] = {}

    def build(self, chunks: Rows[Chunk]) -> StepInputs:
        """The arrays of one step."""
        size, seats, tables = self._block_size, self._seats, self._tables
        token_ids: list[int] = []
        facts: list[tuple[int, int, int, int]] = []
        for chunk in chunks:
            sequence, start, length = chunk.sequence, chunk.start, chunk.length
            table = sequence.block_table
            seat, known = seats.get(sequence, _NOBODY)
            if known is not table:  # new, or back from a preemption with other blocks
                seat = self._sit(sequence, seat)
                tables[seat, : len(table)] = table
            else:
                # Blocks that only hold positions before the chunk cannot have changed since the last one.
                first, end = start // size, -(-(start + length) // size)
                if end - first == 1:
                    tables[seat, first] = table[first]
                else:
                    tables[seat, first:end] = table[first:end]
            facts.append((len(token_ids), start, length, seat))
            token_ids += chunk.token_ids
        columns = np.array(facts, dtype=np.int32).reshape(-1, 4).T
        first_rows, starts, lengths, seat_of = (np.ascontiguousarray(column) for column in columns)
        positions, seat_rows = starts, seat_of
        if len(token_ids) != len(facts):
            positions = np.repeat(starts - first_rows, lengths) + np.arange(len(token_ids), dtype=np.int32)
            seat_rows = np.repeat(seat_of, lengths)
        blocks, offsets = np.divmod(positions, size)
        return StepInputs(
            token_ids=np.array(token_ids, dtype=np.int64),
            positions=positions,
            slots=tables[seat_rows, blocks].astype(np.int64) * size + offsets,
            first_rows=first_rows,
            starts=starts,
            lengths=lengths,
            seats=seat_of,
            block_tables=tables,
        )

    def nobody(self, rows: int) -> StepInputs:
        """Rows that belong to no sequence: computed, not stored, seen by nobody."""
        none = np.zeros(0, dtype=np.int32)
        return StepInputs(
            token_ids=np.zeros(rows, dtype=np.int64),
            positions=np.zeros(rows, dtype=np.int32),
            slots=np.full(rows, -1, dtype=np.int64),
            first_rows=none,
            starts=none,
            lengths=none,
            seats=none,
            block_tables=self._tables,
        )

    def _sit(self, sequence: Sequence, seat: int) -> int:
        if seat < 0:
            if not self._free:
                self._clear_away()
            seat = self._free.pop()
        self._seats[sequence] = (seat, sequence.block_table)
        return seat

    def _clear_away(self) -> None:
        """Free the seats of sequences that do not run any more; grow when all of them do."""
        for sequence in [each for each in self._seats if each.phase is not Phase.RUNNING]:
            self._free.append(self._seats.pop(sequence)[0])
        if not self._free:
            count = len(self._tables)
            self._tables = np.concatenate((self._tables, np.zeros_like(self._tables)))
            self._free = list(range(2 * count - 1, count - 1, -1))


_NOBODY: tuple[int, list[int]] = (-1, [])
