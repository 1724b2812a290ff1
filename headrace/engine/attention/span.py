"""What attention needs to know about one chunk of a batch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Span(NamedTuple):
    """`length` query rows from `row` on, of one sequence at positions [start, start + length).

    Row i attends to positions 0 .. start + i, whose keys and values are in the pages of `block_table` (int64,
    at least as many block ids as positions need).
    """

    row: int
    start: int
    length: int
    block_table: np.ndarray
