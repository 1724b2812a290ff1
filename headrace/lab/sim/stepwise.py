"""The slow, obvious simulator: `core.scheduler` itself, step by step.

Two boxes of the engine's loop are replaced: a cost model stands for the model, and known answer lengths stand for the
sampler.  The fast path (`fast.py`) must agree with this loop in every decision and every nanosecond.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from headrace.core.batch import Batch, StepResult
from headrace.core.request import Request, SamplingParams
from headrace.core.scheduler import Scheduler
from headrace.core.sequence import Sequence as CoreSequence
from headrace.errors import ConfigError, InvalidRequest
from headrace.lab.sim.cost import StepShape, duration_ns
from headrace.lab.sim.outcome import DROPPED, NEVER, OK, REFUSED, SEGMENT_COLUMNS, Outcome
from headrace.lab.sim.server import Server
from headrace.lab.sim.traffic import Traffic

# Token ids of different requests must differ, or the prefix cache would find one's blocks for another.
_STRIDE = 1 << 24


class Decision(NamedTuple):
    """One step as the scheduler decided it, with requests by their index; chunks are (request, start, length)."""

    chunks: tuple[tuple[int, int, int], ...]
    admitted: tuple[int, ...]
    preempted: tuple[int, ...]
    dropped: tuple[int, ...]


class RecordedStep(NamedTuple):
    """When a step of a live engine began and ended, on the clock of the traffic's times."""

    start_ns: int
    end_ns: int


def simulate_stepwise(
    traffic: Traffic,
    server: Server,
    *,
    decisions: list[Decision] | None = None,
    recorded: Sequence[RecordedStep] | None = None,
) -> Outcome:
    """Run the traffic through the scheduler, one step at a time.

    decisions  filled with one entry a step, when it is given
    recorded   step times of a live run, in place of the cost model's
    """
    return _Loop(traffic, server, decisions, recorded).run()


class _Loop:
    def __init__(
        self,
        traffic: Traffic,
        server: Server,
        decisions: list[Decision] | None,
        recorded: Sequence[RecordedStep] | None,
    ) -> None:
        count = len(traffic)
        self.traffic, self.server = traffic, server
        self.scheduler = Scheduler(server.config)
        self.decisions, self.recorded = decisions, recorded
        self.now = 0
        # Plain lists: one element is read or written at a time.
        self.planned: list[int] = traffic.planned_ns.tolist()
        self.prompt: list[int] = traffic.prompt_tokens.tolist()
        self.output: list[int] = traffic.output_tokens.tolist()
        self.sent, self.queued, self.ended = [NEVER] * count, [NEVER] * count, [NEVER] * count
        self.scheduled = [NEVER] * count
        self.status, self.preemptions = [OK] * count, [0] * count
        self.segments: list[tuple[int, ...]] = []
        self.ends: list[int] = []
        self.used: list[int] = []
        self.runs: list[list[tuple[int, int]]] = [[] for _ in range(count)]
        self.index_of: dict[str, int] = {}
        # The client's side: who is sent next, which slots are free since when, and the front end's queue.
        self.next = self.done = 0
        self.slots = [0] * traffic.max_concurrency
        self.front_free = 0
        self.entering: deque[int] = deque()

    def run(self) -> Outcome:
        scheduler, count = self.scheduler, len(self.traffic)
        while self.done < count:
            if self.recorded is not None and len(self.ends) < len(self.recorded):
                self.now = max(self.now, self.recorded[len(self.ends)].start_ns)
            self._arrive()
            if scheduler.has_work:
                self._step()
            elif self.done < count:
                self.now = max(self.now, self._next_arrival())
        return self._outcome()

    def _arrive(self) -> None:
        """Send what is due, and queue what has passed the front end."""
        limited = self.traffic.max_concurrency > 0
        while self.next < len(self.planned) and self.planned[self.next] <= self.now:
            if limited and (not self.slots or self.slots[0] > self.now):
                break
            free = heapq.heappop(self.slots) if limited else 0
            self._send(self.next, max(self.planned[self.next], free))
            self.next += 1
        while self.entering and self.queued[self.entering[0]] <= self.now:
            index = self.entering.popleft()
            self._enter(index)

    def _send(self, index: int, at: int) -> None:
        self.sent[index] = at
        front = self.server.front
        self.front_free = max(at, self.front_free) + duration_ns(front.each_s)
        queued = self.front_free + duration_ns(front.delay_s)
        if self._refused(index):
            self.status[index] = REFUSED
            self._end(index, queued)
        else:
            self.queued[index] = queued
            self.entering.append(index)

    def _refused(self, index: int) -> bool:
        """As the server and `Scheduler.add` judge: too long for the context, or for all KV blocks together."""
        config = self.server.config
        longest: int = self.prompt[index] + int(self.traffic.max_tokens[index])
        return longest > config.max_model_len or -(-longest // config.block_size) > config.num_blocks

    def _enter(self, index: int) -> None:
        try:
            self.scheduler.add(self._request(index))
        except InvalidRequest as error:  # `_refused` has seen to it
            raise ConfigError(f"request {index} cannot be simulated: {error}") from None

    def _request(self, index: int) -> Request:
        traffic, prompt = self.traffic, self.prompt[index]
        own = (index + 1) * _STRIDE
        ids: Sequence[int] = range(own, own + prompt)
        shared = int(traffic.prefix_tokens[index])
        if shared and self.server.config.enable_prefix_caching:
            group = -(int(traffic.prefix_group[index]) + 1) * _STRIDE
            ids = [*range(group, group + shared), *ids[shared:]]
        name = str(index)
        self.index_of[name] = index
        return Request(
            name,
            ids,
            SamplingParams(max_tokens=self.output[index], ignore_eos=True),
            priority=int(traffic.priority[index]),
            arrived=float(index),
        )

    def _next_arrival(self) -> int:
        times = [self.queued[self.entering[0]]] if self.entering else []
        if self.next < len(self.planned):
            free = 0
            if self.traffic.max_concurrency:
                free = self.slots[0] if self.slots else -1
            if free >= 0:
                times.append(max(self.planned[self.next], free))
        return min(times)

    def _step(self) -> None:
        scheduler, number = self.scheduler, len(self.ends)
        batch = scheduler.schedule()
        shape = step_shape(batch)
        running, waiting = scheduler.num_running, scheduler.num_waiting
        used = self.server.config.num_blocks - scheduler.blocks.num_free
        started = self.now
        if self.recorded is not None:
            if number >= len(self.recorded):
                raise ConfigError(f"the log has {len(self.recorded)} steps, and the simulation needs more")
            self.now = self.recorded[number].end_ns
        elif batch.chunks:
            self.now += duration_ns(self.server.cost.seconds(shape))
        self.segments.append((1, started, *shape, running, waiting, len(batch.preempted)))
        self.ends.append(self.now)
        self.used.append(used)
        for sequence in batch.admitted:
            index = self.index_of[sequence.request_id]
            if self.scheduled[index] == NEVER:
                self.scheduled[index] = started
        for sequence in batch.preempted:
            self.preemptions[self.index_of[sequence.request_id]] += 1
        if self.decisions is not None:
            self.decisions.append(self._decision(batch))
        self._commit(batch, number)

    def _commit(self, batch: Batch, number: int) -> None:
        sampling = [self.index_of[chunk.sequence.request_id] for chunk in batch.chunks if chunk.samples]
        # Ids that no prompt and no other request has.
        tokens = tuple((index + 1) * _STRIDE + self.prompt[index] + _STRIDE // 2 for index in sampling)
        for event in self.scheduler.commit(batch, StepResult(tokens)):
            index = self.index_of[event.request_id]
            if event.token_id is not None:
                runs = self.runs[index]
                if runs and sum(runs[-1]) == number:
                    runs[-1] = (runs[-1][0], runs[-1][1] + 1)
                else:
                    runs.append((number, 1))
            elif event.finish_reason is not None:
                self.status[index] = DROPPED
            if event.finish_reason is not None:
                self._end(index, self.now)

    def _end(self, index: int, at: int) -> None:
        self.ended[index] = at
        self.done += 1
        if self.traffic.max_concurrency:
            heapq.heappush(self.slots, at)

    def _decision(self, batch: Batch) -> Decision:
        return Decision(
            tuple((self.index_of[c.sequence.request_id], c.start, c.length) for c in batch.chunks),
            self._indices(batch.admitted),
            self._indices(batch.preempted),
            self._indices(batch.dropped),
        )

    def _indices(self, sequences: Sequence[CoreSequence]) -> tuple[int, ...]:
        return tuple(self.index_of[sequence.request_id] for sequence in sequences)

    def _outcome(self) -> Outcome:
        segments = np.array(self.segments, np.int64).reshape(-1, len(SEGMENT_COLUMNS))
        flat = [(index, first, length) for index, runs in enumerate(self.runs) for first, length in runs]
        return Outcome(
            self.traffic,
            self.server.config,
            sent_ns=np.array(self.sent, np.int64),
            queued_ns=np.array(self.queued, np.int64),
            scheduled_ns=np.array(self.scheduled, np.int64),
            ended_ns=np.array(self.ended, np.int64),
            status=np.array(self.status, np.int64),
            preemptions=np.array(self.preemptions, np.int64),
            segments=segments,
            ends_ns=np.array(self.ends, np.int64),
            blocks_used=np.array(self.used, np.int64),
            runs=np.array(flat, np.int64).reshape(-1, 3),
        )


def step_shape(batch: Batch) -> StepShape:
    """The features that a step's duration depends on."""
    prefill = decodes = kv_tokens = pairs = rows = tokens = 0
    for sequence, start, length, samples, drafts in batch.chunks:
        tokens += length
        rows += 1 + len(drafts) if samples else 0
        if start < sequence.prefill_length:
            prefill += length
            pairs += length * (2 * start + length)
        else:
            decodes += 1
            kv_tokens += start + length
    return StepShape(tokens, prefill, decodes, kv_tokens, pairs, rows, len(batch.chunks))
