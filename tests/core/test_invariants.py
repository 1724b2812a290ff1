"""The invariants notice: each test breaks one thing in a healthy scheduler and expects the sentence for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from headrace.core.batch import Batch, Chunk, StepResult
from headrace.core.invariants import check, check_batch, snapshot
from headrace.core.request import Request, SamplingParams
from headrace.core.scheduler import Scheduler, SchedulerConfig
from headrace.core.sequence import Phase
from headrace.errors import InvariantError


def busy() -> Scheduler:
    """a and b run, c waits for a seat; a's blocks are findable."""
    scheduler = Scheduler(
        SchedulerConfig(
            max_num_batched_tokens=32,
            max_num_seqs=2,
            max_model_len=32,
            block_size=4,
            num_blocks=16,
            enable_prefix_caching=True,
        )
    )
    for name in "abc":
        scheduler.add(Request(name, range(ord(name), ord(name) + 9), SamplingParams(max_tokens=8)))
    scheduler.commit(scheduler.schedule(), StepResult((7, 7)))
    return scheduler


def lose_the_head(s: Scheduler) -> None:
    s.state.waiting.pop()


def queue_twice(s: Scheduler) -> None:
    s.state.running.append(s.state.running[0])


def wrong_phase(s: Scheduler) -> None:
    s.state.running[0].phase = Phase.WAITING


def swap_seats(s: Scheduler) -> None:
    s.state.running.reverse()


def waiting_with_blocks(s: Scheduler) -> None:
    assert s.blocks.grow(s.state.waiting.head(), 4)


def nothing_to_compute(s: Scheduler) -> None:
    s.state.running[0].computed += 1


def one_block_too_many(s: Scheduler) -> None:
    assert s.blocks.grow(s.state.running[0], 13)


def leaked_reference(s: Scheduler) -> None:
    s.blocks._refs[0] += 1


def used_block_in_free_list(s: Scheduler) -> None:
    s.blocks._blank.append(0)


def forgotten_key(s: Scheduler) -> None:
    s.blocks._keys[0] = None


def findable_as_something_else(s: Scheduler) -> None:
    sequence = s.state.running[0]
    sequence.request = Request("a", [5] * 9)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lose_the_head, r"requests lost or forgotten: \['c'\]"),
        (queue_twice, r"Sequence\('a'.*queued 2 times"),
        (wrong_phase, "stands in the running queue"),
        (swap_seats, "somebody overtook an earlier request"),
        (waiting_with_blocks, "waits and still holds blocks"),
        (nothing_to_compute, "runs and has nothing to compute"),
        (one_block_too_many, "holds 4 blocks for 9 tokens"),
        (leaked_reference, "block 0 has 1 owners and a reference count of 2"),
        (used_block_in_free_list, "11 blocks free, 6 in use, 16 in all"),
        (forgotten_key, "own keys disagree"),
        (findable_as_something_else, "block 0 of .* is findable as something else"),
    ],
)
def test_harm_is_noticed(harm: Callable[[Scheduler], None], message: str) -> None:
    scheduler = busy()
    check(scheduler)
    harm(scheduler)
    with pytest.raises(InvariantError, match=message):
        check(scheduler)


def test_a_batch_that_is_not_what_the_rules_give_is_noticed() -> None:
    scheduler = busy()
    before = snapshot(scheduler)
    batch = scheduler.schedule()
    check_batch(scheduler, batch, before)
    a, b = (chunk.sequence for chunk in batch.chunks)
    for chunks, message in (
        ((Chunk(a, 9, 1, True),), "got nothing although 31 tokens were left"),
        ((Chunk(a, 9, 1, True), Chunk(a, 9, 1, True)), "two chunks in one step"),
        ((Chunk(a, 9, 1, False), Chunk(b, 9, 1, True)), "samples at 10"),
        ((Chunk(a, 8, 2, True), Chunk(b, 9, 1, True)), "served from 8, which is not where it stood"),
        ((Chunk(b, 9, 1, True),), "before an earlier one in its list"),
    ):
        with pytest.raises(InvariantError, match=message):
            check_batch(scheduler, Batch(2, chunks), before)
