"""What attention needs to know about one chunk of a batch, and about one layer."""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Rules:
    """How a layer attends: the scale of queries; scores s become softcap * tanh(s / softcap) (0: they stay); a row sees
    its last `window` positions, itself included (0: all)."""

    scale: float
    softcap: float = 0.0
    window: int = 0
