"""Sends the requests when they are due, and writes down what happened to each: open loop, limited, or closed loop."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

from headrace.clock import Clock
from headrace.lab.client.transport import Exchange

TICK_S = 0.05
PROGRESS_S = 1.0


class Transport(Protocol):
    async def post(self, body: bytes, exchange: Exchange) -> None: ...


@dataclass(frozen=True, slots=True)
class FollowUp:
    """A later turn of a session: due `think_ns` after the answer before it; `make_body` is given both."""

    index: int
    think_ns: int
    make_body: Callable[[bytes, Exchange], bytes]


@dataclass(slots=True)
class Sent:
    """One issued request: its place in the workload, when it was due, when the client's own limit let it go."""

    index: int
    planned_ns: int
    admitted_ns: int
    exchange: Exchange = field(default_factory=Exchange)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is; `total` requests are to be sent."""

    issued: int
    done: int
    failed: int
    total: int
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class LoadOutcome:
    """What was issued, in workload order.  After an interruption the rest of the workload is missing from `sent`."""

    sent: list[Sent]
    start_ns: int
    end_ns: int
    loop_lags_ns: list[int]
    interrupted: bool


async def run_load(
    bodies: Sequence[bytes],
    schedule_ns: Sequence[int] | None,
    transport: Transport,
    clock: Clock,
    *,
    max_concurrency: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    on_done: Callable[[Sent], None] | None = None,
    follow_ups: Mapping[int, Sequence[FollowUp]] | None = None,
    indices: Sequence[int] | None = None,
    start_ns: int | None = None,
) -> LoadOutcome:
    """Send every body.

    schedule_ns      due times from the start, ascending; None is a closed loop of `max_concurrency` users, where a
                     request is due when a user becomes free
    max_concurrency  requests in flight at most; with a schedule, a request that is due waits for a slot (the wait is
                     `admitted_ns - planned_ns`)
    on_done          called after each answer, in the event loop: it must be quick
    follow_ups       later turns of the session that a body begins, by the body's index
    indices          each body's place in the workload; default: its place in `bodies`
    start_ns         when the run begins, on `clock`; default: now
    Cancelling the calling task (Ctrl-C) ends the run early; what was issued is returned, `interrupted` is set.
    """
    run = _Run(bodies, indices or range(len(bodies)), follow_ups or {}, transport, clock, progress, on_done)
    watch = asyncio.create_task(run.watch())
    gc.collect()
    gc.freeze()
    gc.disable()  # a collection over all records would stop the clock of every stream
    try:
        await run.wait_until(start_ns)
        if schedule_ns is None:
            assert max_concurrency is not None, "a closed loop has a number of users"
            await run.closed_loop(max_concurrency)
        else:
            await run.open_loop(schedule_ns, max_concurrency)
        interrupted = False
    except asyncio.CancelledError:
        interrupted = True
    finally:
        end_ns = clock.now_ns()
        watch.cancel()
        gc.enable()
        gc.unfreeze()
    run.report()
    run.sent.sort(key=lambda sent: sent.index)
    return LoadOutcome(run.sent, run.start_ns, end_ns, run.loop_lags_ns, interrupted)


class _Run:
    def __init__(
        self,
        bodies: Sequence[bytes],
        indices: Sequence[int],
        follow_ups: Mapping[int, Sequence[FollowUp]],
        transport: Transport,
        clock: Clock,
        progress: Callable[[Progress], None] | None,
        on_done: Callable[[Sent], None] | None,
    ) -> None:
        self._bodies = bodies
        self._indices = indices
        self._follow_ups = follow_ups
        self._total = len(bodies) + sum(len(turns) for turns in follow_ups.values())
        self._transport = transport
        self._clock = clock
        self._progress = progress
        self._on_done = on_done
        self.sent: list[Sent] = []
        self._done = 0
        self._failed = 0
        self.loop_lags_ns: list[int] = []
        self.start_ns = clock.now_ns()

    async def wait_until(self, start_ns: int | None) -> None:
        if start_ns is not None:
            await self._until(start_ns)
        self.start_ns = self._clock.now_ns() if start_ns is None else start_ns

    async def _until(self, due_ns: int) -> None:
        # Timers are coarse (a millisecond with uvloop) and may fire early: ask again until it is time.
        while (wait_ns := due_ns - self._clock.now_ns()) > 0:
            await asyncio.sleep(wait_ns / 1e9)

    async def open_loop(self, schedule_ns: Sequence[int], limit: int | None) -> None:
        slots = asyncio.Semaphore(limit) if limit is not None else None
        tasks: list[asyncio.Task[None]] = []
        async with _together(tasks):
            for place, due_ns in enumerate(schedule_ns):
                planned_ns = self.start_ns + due_ns
                await self._until(planned_ns)
                tasks.append(asyncio.create_task(self._session(place, planned_ns, slots)))

    async def closed_loop(self, users: int) -> None:
        waiting = iter(range(len(self._bodies)))

        async def user() -> None:
            for place in waiting:
                await self._session(place, self._clock.now_ns(), None)

        tasks: list[asyncio.Task[None]] = []
        async with _together(tasks):
            for _ in range(min(users, len(self._bodies))):
                tasks.append(asyncio.create_task(user()))

    async def _session(self, place: int, planned_ns: int, slots: asyncio.Semaphore | None) -> None:
        """One request, and the later turns of its session where there are any."""
        body = self._bodies[place]
        sent = await self._one(self._indices[place], body, planned_ns, slots)
        for turn in self._follow_ups.get(self._indices[place], ()):
            if not sent.exchange.ok:  # a row all the same: nothing of a workload may be missing
                sent = self._not_sent(turn.index, sent.exchange.done_ns)
                continue
            due_ns = sent.exchange.done_ns + turn.think_ns
            body = turn.make_body(body, sent.exchange)
            await self._until(due_ns)
            sent = await self._one(turn.index, body, due_ns, slots)

    def _not_sent(self, index: int, t_ns: int) -> Sent:
        sent = Sent(index, t_ns, t_ns)
        sent.exchange.sent_ns = sent.exchange.done_ns = t_ns
        sent.exchange.fail("cancelled", "not sent: an earlier turn of its session failed")
        self.sent.append(sent)
        self._ended(sent)
        return sent

    async def _one(self, index: int, body: bytes, planned_ns: int, slots: asyncio.Semaphore | None) -> Sent:
        if slots is None:
            return await self._send(Sent(index, planned_ns, planned_ns), body)
        async with slots:
            return await self._send(Sent(index, planned_ns, self._clock.now_ns()), body)

    async def _send(self, sent: Sent, body: bytes) -> Sent:
        self.sent.append(sent)
        try:
            await self._transport.post(body, sent.exchange)
        finally:
            self._ended(sent)
        return sent

    def _ended(self, sent: Sent) -> None:
        self._done += 1
        self._failed += not sent.exchange.ok
        if self._on_done is not None:
            self._on_done(sent)

    async def watch(self) -> None:
        """Measure how late the loop wakes us: that is how late any stamp may be.  Reports progress on the way."""
        since_report = 0.0
        while True:
            before_ns = self._clock.now_ns()
            await asyncio.sleep(TICK_S)
            self.loop_lags_ns.append(max(0, self._clock.now_ns() - before_ns - int(TICK_S * 1e9)))
            since_report += TICK_S
            if since_report >= PROGRESS_S:
                since_report = 0.0
                self.report()

    def report(self) -> None:
        if self._progress is not None:
            elapsed_s = (self._clock.now_ns() - self.start_ns) / 1e9
            self._progress(Progress(len(self.sent), self._done, self._failed, self._total, elapsed_s))


@asynccontextmanager
async def _together(tasks: list[asyncio.Task[None]]) -> AsyncIterator[None]:
    """Wait for all tasks at the end of the block; when it is left early, cancel them and wait until they are gone."""
    try:
        yield
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
