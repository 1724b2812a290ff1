"""When requests are sent, in virtual time: nobody sleeps, every nanosecond is known."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any

from headrace.lab.client.load import LoadOutcome, Progress, run_load
from headrace.lab.client.transport import Exchange

MS = 1_000_000
SECOND = 1000 * MS


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer instead of waiting for it."""

    def __init__(self) -> None:
        loop = self
        self.now_s = 0.0

        class Selector(selectors.DefaultSelector):  # type: ignore[misc, valid-type]
            def select(self, timeout: float | None = None) -> Any:
                loop.now_s += timeout or 0.0
                return super().select(0)

        super().__init__(Selector())

    def time(self) -> float:
        return self.now_s

    def now_ns(self) -> int:
        return round(self.now_s * 1e9)


class FixedServiceTime:
    """Answers after `service_s`, or fails the requests in `fails`."""

    def __init__(self, loop: VirtualTimeLoop, service_s: float, fails: frozenset[int] = frozenset()) -> None:
        self.loop, self.service_s, self.fails = loop, service_s, fails
        self.in_flight = self.most = 0

    async def post(self, body: bytes, exchange: Exchange) -> None:
        exchange.sent_ns = self.loop.now_ns()
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        try:
            await asyncio.sleep(self.service_s)
            if int(body) in self.fails:
                exchange.error_class, exchange.error = "http_5xx", "no"
        except asyncio.CancelledError:
            exchange.error_class = "cancelled"
            raise
        finally:
            self.in_flight -= 1
            exchange.done_ns = self.loop.now_ns()


def run(loop: VirtualTimeLoop, work: Coroutine[Any, Any, LoadOutcome]) -> LoadOutcome:
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(work)


def bodies(n: int) -> list[bytes]:
    return [str(i).encode() for i in range(n)]


def near(times_ns: list[int], wanted_ns: list[int]) -> bool:
    return len(times_ns) == len(wanted_ns) and all(abs(a - b) < 1000 for a, b in zip(times_ns, wanted_ns, strict=True))


def test_an_open_loop_sends_on_schedule_however_slow_the_server_is() -> None:
    loop = VirtualTimeLoop()
    server = FixedServiceTime(loop, 10.0)
    outcome = run(loop, run_load(bodies(3), [0, 500 * MS, 700 * MS], server, loop))
    assert [s.planned_ns - outcome.start_ns for s in outcome.sent] == [0, 500 * MS, 700 * MS]
    assert near([s.exchange.sent_ns for s in outcome.sent], [s.planned_ns for s in outcome.sent])
    assert near([outcome.end_ns - outcome.start_ns], [10_700 * MS]) and server.most == 3


def test_with_a_limit_the_wait_for_a_slot_is_recorded_and_stays_in_the_latency() -> None:
    loop = VirtualTimeLoop()
    server = FixedServiceTime(loop, 1.0)
    outcome = run(loop, run_load(bodies(3), [0, 0, 0], server, loop, max_concurrency=1))
    assert [s.planned_ns - outcome.start_ns for s in outcome.sent] == [0, 0, 0]
    assert near([s.admitted_ns - outcome.start_ns for s in outcome.sent], [0, SECOND, 2 * SECOND])
    assert server.most == 1


def test_in_a_closed_loop_a_request_is_due_when_a_user_becomes_free() -> None:
    loop = VirtualTimeLoop()
    server = FixedServiceTime(loop, 1.0)
    outcome = run(loop, run_load(bodies(5), None, server, loop, max_concurrency=2))
    assert near([s.planned_ns - outcome.start_ns for s in outcome.sent], [0, 0, SECOND, SECOND, 2 * SECOND])
    assert server.most == 2 and [s.index for s in outcome.sent] == [0, 1, 2, 3, 4]


def test_failures_are_rows_and_do_not_stop_the_others() -> None:
    loop = VirtualTimeLoop()
    reports: list[Progress] = []
    server = FixedServiceTime(loop, 2.0, fails=frozenset({1}))
    outcome = run(loop, run_load(bodies(3), [0, 0, 0], server, loop, progress=reports.append))
    assert [s.exchange.ok for s in outcome.sent] == [True, False, True]
    assert (reports[0].issued, reports[0].done) == (3, 0)
    assert (reports[-1].done, reports[-1].failed, reports[-1].total) == (3, 1, 3)


def test_an_interruption_keeps_what_was_measured() -> None:
    loop = VirtualTimeLoop()
    server = FixedServiceTime(loop, 2.0)

    async def interrupted() -> LoadOutcome:
        schedule = [0, 3 * SECOND, 9 * SECOND]
        task = asyncio.create_task(run_load(bodies(3), schedule, server, loop))
        await asyncio.sleep(4.0)
        task.cancel()
        return await task

    outcome = run(loop, interrupted())
    assert outcome.interrupted and [s.index for s in outcome.sent] == [0, 1]
    assert [s.exchange.error_class for s in outcome.sent] == [None, "cancelled"]


def test_a_blocked_event_loop_is_seen_as_the_clients_lag() -> None:
    loop = VirtualTimeLoop()

    class Blocking(FixedServiceTime):
        async def post(self, body: bytes, exchange: Exchange) -> None:
            await asyncio.sleep(0.060)
            loop.now_s += 0.050  # as if a callback had computed for 50 ms
            await super().post(body, exchange)

    outcome = run(loop, run_load(bodies(1), [0], Blocking(loop, 1.0), loop))
    assert max(outcome.loop_lags_ns) >= 9 * MS
