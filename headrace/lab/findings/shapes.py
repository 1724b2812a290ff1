"""The shape of a metric over an ordered factor: rises, falls, turns, and where it becomes flat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Two neighbours that agree are no plateau: a curve that flattens needs a third point to show it.
MIN_PLATEAU_POINTS = 3


@dataclass(frozen=True, slots=True)
class Segment:
    """From point `start` to point `end` (indices) the metric rises (+1) or falls (-1)."""

    start: int
    end: int
    direction: int


@dataclass(frozen=True, slots=True)
class Shape:
    """`segments` in order; `plateau` is the index from which all points lie within the tolerance (None: no plateau,
    0: the whole series is flat); `spread` is (max - min)/min over the plateau, or over everything without one."""

    segments: tuple[Segment, ...]
    plateau: int | None
    spread: float

    @property
    def flat(self) -> bool:
        return not self.segments

    @property
    def directions(self) -> tuple[int, ...]:
        return tuple(segment.direction for segment in self.segments)


def spread(values: Sequence[float]) -> float:
    """(max - min)/min of positive values."""
    return max(values) / min(values) - 1


def shape_of(values: Sequence[float], tolerance: float) -> Shape:
    """Shape of positive values in the order of the factor.  Movements within `tolerance` (relative) are not seen."""
    if len(values) < 2 or spread(values) <= tolerance:
        return Shape((), 0, spread(values) if values else 0.0)
    plateau = next(
        (start for start in range(1, len(values) - MIN_PLATEAU_POINTS + 1) if spread(values[start:]) <= tolerance),
        None,
    )
    head = values if plateau is None else values[: plateau + 1]
    segments = _turns(head, tolerance)
    if plateau is not None and not segments:
        # every step on the way is within the tolerance, their sum is not: a drift
        segments.append(Segment(0, plateau, 1 if values[plateau] > values[0] else -1))
    return Shape(tuple(segments), plateau, spread(values if plateau is None else values[plateau:]))


def _turns(values: Sequence[float], tolerance: float) -> list[Segment]:
    """Split at turning points; a reversal counts when it exceeds the tolerance (a zigzag filter)."""
    segments: list[Segment] = []
    start = low = high = 0
    direction = 0
    for index in range(1, len(values)):
        if values[index] > values[high]:
            high = index
        if values[index] < values[low]:
            low = index
        if direction >= 0 and values[index] * (1 + tolerance) < values[high]:
            if direction > 0:
                segments.append(Segment(start, high, 1))
                start = high
            direction, low, high = -1, index, index
        elif direction <= 0 and values[index] > values[low] * (1 + tolerance):
            if direction < 0:
                segments.append(Segment(start, low, -1))
                start = low
            direction, low, high = 1, index, index
    if direction:
        segments.append(Segment(start, len(values) - 1, direction))
    return [segment for segment in segments if segment.start < segment.end]
