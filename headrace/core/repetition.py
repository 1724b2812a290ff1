"""When an output repeats itself: a stop rule over its last tokens (vLLM's `repetition_detection`)."""

from __future__ import annotations

from collections.abc import Sequence as Ids
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RepetitionDetection:
    """An output ends when its last tokens are one pattern, `min_count` times in a row.

    Patterns of `min_pattern_size` (0: 1) to `max_pattern_size` tokens are looked for; `max_pattern_size` 0 finds none.
    """

    max_pattern_size: int = 0
    min_pattern_size: int = 0
    min_count: int = 0

    @property
    def fault(self) -> str | None:
        """Why it cannot be followed, or None."""
        if self.min_pattern_size > self.max_pattern_size:
            return (
                f"min_pattern_size ({self.min_pattern_size}) must be at most max_pattern_size ({self.max_pattern_size})"
            )
        if self.max_pattern_size and self.min_count < 2:
            return f"min_count must be at least 2, not {self.min_count}"
        return None

    def repeats(self, output: Ids[int]) -> bool:
        """Whether `output` ends in such a repetition."""
        for size in range(max(1, self.min_pattern_size), self.max_pattern_size + 1):
            if size * self.min_count > len(output):
                return False
            if output[-1] != output[-1 - size]:  # most patterns end here, without a copy
                continue
            pattern = output[-size:]
            ends = range(len(output) - size, len(output) - size * self.min_count, -size)
            if all(output[end - size : end] == pattern for end in ends):
                return True
        return False
