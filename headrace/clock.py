"""Time as a value that is handed in, so that tests and simulations never sleep."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Monotonic time in integer nanoseconds; the epoch is arbitrary, only differences mean anything."""

    def now_ns(self) -> int: ...


class MonotonicClock:
    """The machine's clock (`time.perf_counter_ns`)."""

    def now_ns(self) -> int:
        return time.perf_counter_ns()


class FakeClock:
    """A clock that moves only when told to: for tests and for simulated time."""

    def __init__(self, start_ns: int = 0) -> None:
        self._now_ns = start_ns

    def now_ns(self) -> int:
        return self._now_ns

    def advance_ns(self, delta_ns: int) -> None:
        if delta_ns < 0:
            raise ValueError(f"a monotonic clock cannot go back by {-delta_ns} ns")
        self._now_ns += delta_ns
