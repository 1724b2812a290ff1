"""A load split over processes: jobs out, records in.  Pure but for `run_job`, which sends one job's requests.

One seeded schedule is made before, and request i goes to process i mod N: however many there are, the arrivals are the
same (workers with a generator each send in lock-step, measured on another tool: an index of dispersion of 7.6).
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from headrace.clock import MonotonicClock
from headrace.lab.client.connection import Exchange
from headrace.lab.client.load import FollowUp, Progress, Sent, run_load
from headrace.lab.client.reading import bounded, read_answer
from headrace.lab.client.transport import HttpTransport
from headrace.lab.records.schema import RequestRecord
from headrace.lab.records.store import read_record, record_line

# Answers are read after the run; a very long run would fill the memory with bytes, so beyond this they are read as
# they end, which costs a few microseconds a message in the event loop.
MAX_UNREAD_BYTES = 256 * 1024 * 1024

# What one process can do, with room: measured at 80,000 events/s with a p99 lag below 1 ms (docs/measurement.md).
STREAMS_PER_PROCESS = 512
REQUESTS_PER_PROCESS = 500.0


@dataclass(frozen=True, slots=True)
class Turn:
    """A later turn of a session: what the user says after the answer before it, and how long they think first."""

    index: int
    message: str
    max_tokens: int
    think_ns: int


@dataclass(frozen=True, slots=True)
class Item:
    """One request, or the session that it begins.  `due_ns` counts from the start; None in a closed loop."""

    index: int
    body: str
    due_ns: int | None
    turns: tuple[Turn, ...] = ()


@dataclass(frozen=True, slots=True)
class Job:
    """What one process sends: everything in it can be JSON, so that it may go to another process or machine."""

    url: str
    headers: Mapping[str, str]
    timeout_s: float
    max_concurrency: int | None
    items: tuple[Item, ...]

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        data = json.loads(text)
        items = tuple(
            Item(item["index"], item["body"], item["due_ns"], tuple(Turn(**turn) for turn in item["turns"]))
            for item in data.pop("items")
        )
        return cls(**data, items=items)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one process measured, or what all of them did.

    cpu_s     processor time of each process between the first send and the last answer
    records   in workload order
    """

    records: list[RequestRecord]
    start_ns: int
    end_ns: int
    loop_lags_ns: list[int]
    cpu_s: list[float]
    interrupted: bool
    clock_pairs: list[tuple[int, int]] = field(default_factory=list)

    def to_json(self) -> str:
        data = {name: getattr(self, name) for name in self.__slots__ if name != "records"}
        return json.dumps(data) + "\n" + "".join(record_line(record) for record in self.records)

    @classmethod
    def from_json(cls, text: str) -> Outcome:
        head, *lines = text.splitlines()
        data = json.loads(head)
        data["clock_pairs"] = [(wall, mono) for wall, mono in data["clock_pairs"]]
        return cls(records=[read_record(line) for line in lines], **data)


def processes_for(*, streams: float, rate: float, cpus: int) -> int:
    """How many processes a load wants: one a so many streams and requests per second, and a core left for the rest."""
    wanted = max(math.ceil(streams / STREAMS_PER_PROCESS), 1)
    if math.isfinite(rate):
        wanted = max(wanted, math.ceil(rate / REQUESTS_PER_PROCESS))
    return max(1, min(wanted, cpus - 1))


def split(job: Job, processes: int) -> list[Job]:
    """`processes` jobs that together are this one; a limit of concurrency is divided, one each at least.

    Fewer where there are fewer requests or places than processes.
    """
    places = len(job.items) if job.max_concurrency is None else min(len(job.items), job.max_concurrency)
    processes = max(1, min(processes, places))
    jobs = []
    for number in range(processes):
        limit = job.max_concurrency
        if limit is not None:
            limit = limit // processes + (number < limit % processes)
        jobs.append(replace(job, items=job.items[number::processes], max_concurrency=limit))
    return jobs


def merge(outcomes: Sequence[Outcome]) -> Outcome:
    """One outcome of all: records in workload order, from the first start to the last end."""
    return Outcome(
        records=sorted((record for one in outcomes for record in one.records), key=lambda record: record.index),
        start_ns=min(one.start_ns for one in outcomes),
        end_ns=max(one.end_ns for one in outcomes),
        loop_lags_ns=[lag for one in outcomes for lag in one.loop_lags_ns],
        cpu_s=[cpu for one in outcomes for cpu in one.cpu_s],
        interrupted=any(one.interrupted for one in outcomes),
        clock_pairs=[pair for one in outcomes for pair in one.clock_pairs],
    )


def moved(outcome: Outcome, delta_ns: int) -> Outcome:
    """The outcome on a clock that shows `delta_ns` more: records of another machine, on ours."""
    for record in outcome.records:
        for name in ("planned_ns", "admitted_ns", "sent_ns", "done_ns"):
            setattr(record, name, getattr(record, name) + delta_ns)
        if record.headers_ns is not None:
            record.headers_ns += delta_ns
        if "connected_ns" in record.extra:
            record.extra["connected_ns"] += delta_ns
        for chunk in record.chunks:
            chunk.t_ns += delta_ns
    return replace(
        outcome,
        start_ns=outcome.start_ns + delta_ns,
        end_ns=outcome.end_ns + delta_ns,
        clock_pairs=[(wall, mono + delta_ns) for wall, mono in outcome.clock_pairs],
    )


async def run_job(
    job: Job, *, start_ns: int | None = None, progress: Callable[[Progress], None] | None = None
) -> Outcome:
    """Send a job's requests.  Cancelling ends it early; what was measured is returned, `interrupted` is set."""
    clock = MonotonicClock()
    unread = _Unread()
    follow_ups = {item.index: [_follow_up(turn) for turn in item.turns] for item in job.items if item.turns}
    dues = [item.due_ns for item in job.items if item.due_ns is not None]
    bodies = [item.body.encode() for item in job.items]
    transport = HttpTransport(job.url, headers=job.headers, timeout_s=job.timeout_s, clock=clock)
    async with transport:
        pairs = [(time.time_ns(), clock.now_ns())]
        cpu_s = time.process_time()
        outcome = await run_load(
            bodies,
            dues if len(dues) == len(bodies) else None,
            transport,
            clock,
            max_concurrency=job.max_concurrency,
            progress=progress,
            on_done=unread.done,
            follow_ups=follow_ups,
            indices=[item.index for item in job.items],
            start_ns=start_ns,
        )
        cpu_s = time.process_time() - cpu_s
        pairs.append((time.time_ns(), clock.now_ns()))
    records = [unread.record(sent) for sent in outcome.sent]
    lags = outcome.loop_lags_ns
    return Outcome(records, outcome.start_ns, outcome.end_ns, lags, [cpu_s], outcome.interrupted, pairs)


def _follow_up(turn: Turn) -> FollowUp:
    def make_body(before: bytes, exchange: Exchange) -> bytes:
        """The conversation so far, the answer that came, and what the user says next."""
        answer = RequestRecord(0, 0)
        read_answer(answer, exchange.reads, content_type=exchange.content_type, chunked=exchange.chunked)
        body: dict[str, Any] = json.loads(before)
        said = [{"role": "assistant", "content": answer.output_text or ""}, {"role": "user", "content": turn.message}]
        body["messages"] = [*body["messages"], *said]
        body["max_completion_tokens"] = turn.max_tokens
        return json.dumps(body).encode()

    return FollowUp(turn.index, turn.think_ns, make_body)


class _Unread:
    """Turns exchanges into records: after the run, or on the way when too many bytes wait."""

    def __init__(self) -> None:
        self._bytes = 0
        self._records: dict[int, RequestRecord] = {}

    def done(self, sent: Sent) -> None:
        self._bytes += sent.exchange.bytes_read
        if self._bytes > MAX_UNREAD_BYTES:
            self._records[sent.index] = _record(sent)
            sent.exchange.reads.clear()

    def record(self, sent: Sent) -> RequestRecord:
        return self._records.get(sent.index) or _record(sent)


def _record(sent: Sent) -> RequestRecord:
    exchange = sent.exchange
    record = RequestRecord(
        index=sent.index,
        planned_ns=sent.planned_ns,
        admitted_ns=sent.admitted_ns,
        sent_ns=exchange.sent_ns,
        headers_ns=exchange.headers_ns,
        done_ns=exchange.done_ns,
        status=exchange.status,
        error_class=exchange.error_class,
        error=None if exchange.error is None else bounded(exchange.error),
        extra={"new_connection": exchange.new_connection},
    )
    if exchange.connected_ns is not None:
        record.extra["connected_ns"] = exchange.connected_ns
    read_answer(record, exchange.reads, content_type=exchange.content_type, chunked=exchange.chunked)
    return record


def run_to_the_end(main: Any) -> Any:
    """Run a coroutine on uvloop where it exists.  The first Ctrl-C cancels it, and it returns what it has."""
    try:
        import uvloop

        factory: Callable[[], asyncio.AbstractEventLoop] | None = uvloop.new_event_loop
    except ImportError:
        factory = None
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)
