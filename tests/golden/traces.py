"""Plays a few requests through a scheduler and writes down each step as one line.

`A[0:4]` is a chunk of request A, `*` marks that it samples, `+A` an admission, `-A` a preemption, `!A` a dropped
request.  The sampled token is always 9 and ends nothing, so requests run to their `max_tokens`.
"""

from __future__ import annotations

from collections.abc import Sequence as Ids
from dataclasses import dataclass
from typing import Any

from headrace.core.batch import Batch, StepResult
from headrace.core.invariants import check, check_batch, snapshot
from headrace.core.request import Request, SamplingParams
from headrace.core.scheduler import Scheduler, SchedulerConfig


@dataclass(frozen=True)
class Ask:
    """A request: `prompt` is a length (then it shares no prefix with others) or token ids; `at` the step it comes."""

    name: str
    prompt: int | Ids[int]
    max_tokens: int
    at: int = 1
    priority: int = 0


def make_scheduler(**config: Any) -> Scheduler:
    return Scheduler(SchedulerConfig(**{"max_model_len": 64, "block_size": 4, "num_blocks": 32, **config}))


def add(scheduler: Scheduler, ask: Ask) -> None:
    prompt = ask.prompt
    if isinstance(prompt, int):
        prompt = range(1000 * ord(ask.name), 1000 * ord(ask.name) + prompt)
    params = SamplingParams(max_tokens=ask.max_tokens)
    scheduler.add(Request(ask.name, prompt, params, priority=ask.priority, arrived=ask.at))


def line(batch: Batch) -> str:
    words = [f"{c.sequence.request_id}[{c.start}:{c.start + c.length}]{'*' * c.samples}" for c in batch.chunks]
    for sign, sequences in (("+", batch.admitted), ("-", batch.preempted), ("!", batch.dropped)):
        words += [sign + sequence.request_id for sequence in sequences]
    return " ".join(words)


def step(scheduler: Scheduler) -> str:
    before = snapshot(scheduler)
    batch = scheduler.schedule()
    check_batch(scheduler, batch, before)
    text = line(batch)
    scheduler.commit(batch, StepResult((9,) * sum(chunk.samples for chunk in batch.chunks)))
    check(scheduler)
    return text


def play(asks: list[Ask], **config: Any) -> list[str]:
    """The trace of all requests to their end."""
    scheduler = make_scheduler(**config)
    trace: list[str] = []
    pending = list(asks)
    while pending or scheduler.has_work:
        for ask in [ask for ask in pending if ask.at <= len(trace) + 1]:
            add(scheduler, ask)
            pending.remove(ask)
        trace.append(step(scheduler))
    assert scheduler.blocks.num_free == scheduler.config.num_blocks
    return trace
