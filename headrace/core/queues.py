"""The waiting queue in its two orders: first come first served, and by priority."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterator
from typing import Protocol

from headrace.core.sequence import Phase, Sequence


def rank(sequence: Sequence) -> tuple[int, float, int]:
    """Who goes first under the priority policy: the smallest.  The arrival number makes it a total order."""
    return (sequence.request.priority, sequence.request.arrived, sequence.order)


class WaitingQueue(Protocol):
    """All operations are O(1), or O(log n) for the priority order; iteration is in serving order."""

    def add(self, sequence: Sequence) -> None:
        """A new arrival."""

    def give_back(self, sequence: Sequence) -> None:
        """A sequence that was running: to the front, or to its rank."""

    def head(self) -> Sequence: ...

    def pop(self) -> Sequence: ...

    def remove(self, sequence: Sequence) -> None:
        """Take out a sequence that has just been marked finished, wherever it stands."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Sequence]: ...


class FcfsQueue:
    """Arrival order; a sequence that is given back goes to the front."""

    def __init__(self) -> None:
        self._items: OrderedDict[Sequence, None] = OrderedDict()

    def add(self, sequence: Sequence) -> None:
        self._items[sequence] = None

    def give_back(self, sequence: Sequence) -> None:
        self._items[sequence] = None
        self._items.move_to_end(sequence, last=False)

    def head(self) -> Sequence:
        return next(iter(self._items))

    def pop(self) -> Sequence:
        return self._items.popitem(last=False)[0]

    def remove(self, sequence: Sequence) -> None:
        del self._items[sequence]

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._items)


class PriorityQueue:
    """Ordered by `rank`.  Removal leaves a tombstone (a finished sequence) that is skipped or swept later."""

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[int, float, int], Sequence]] = []
        self._dead = 0

    def add(self, sequence: Sequence) -> None:
        heapq.heappush(self._heap, (rank(sequence), sequence))

    give_back = add

    def head(self) -> Sequence:
        self._bury()
        return self._heap[0][1]

    def pop(self) -> Sequence:
        self._bury()
        return heapq.heappop(self._heap)[1]

    def remove(self, sequence: Sequence) -> None:
        self._dead += 1
        if 2 * self._dead > len(self._heap) + 16:
            self._heap = [item for item in self._heap if item[1].phase is Phase.WAITING]
            heapq.heapify(self._heap)
            self._dead = 0

    def _bury(self) -> None:
        while self._heap[0][1].phase is not Phase.WAITING:
            heapq.heappop(self._heap)
            self._dead -= 1

    def __len__(self) -> int:
        return len(self._heap) - self._dead

    def __iter__(self) -> Iterator[Sequence]:
        return iter([item[1] for item in sorted(self._heap) if item[1].phase is Phase.WAITING])
