"""`repetition_detection`: an output that goes round in circles ends, and says so."""

from __future__ import annotations

import random

import pytest

from headrace.core.batch import StepResult
from headrace.core.repetition import RepetitionDetection
from headrace.core.request import FinishReason, Request, SamplingParams
from headrace.core.scheduler import Scheduler, SchedulerConfig, Speculation

CONFIG = SchedulerConfig(max_model_len=64, max_num_batched_tokens=64, max_num_seqs=2, block_size=4, num_blocks=32)


def plainly(output: list[int], rule: RepetitionDetection) -> bool:
    for size in range(max(1, rule.min_pattern_size), rule.max_pattern_size + 1):
        tail = output[-size * rule.min_count :]
        if len(tail) == size * rule.min_count and tail == tail[:size] * rule.min_count:
            return True
    return False


@pytest.mark.parametrize("seed", range(30))
def test_it_is_found_where_the_tail_is_one_pattern_again_and_again(seed: int) -> None:
    rng = random.Random(seed)
    most = rng.randint(1, 5)
    rule = RepetitionDetection(most, rng.randint(0, most), rng.randint(2, 4))
    output: list[int] = []
    for _ in range(200):
        output.append(rng.randrange(2))
        assert rule.repeats(output) == plainly(output, rule)


def said(tokens: list[int], rule: RepetitionDetection, **params: int) -> tuple[list[int], object, object]:
    scheduler = Scheduler(CONFIG)
    scheduler.add(Request("a", [9], SamplingParams(max_tokens=20, repetition_detection=rule, **params)))
    output: list[int] = []
    for token in tokens:
        (event,) = scheduler.commit(scheduler.schedule(), StepResult((token,)))
        assert event.token_id is not None
        output.append(event.token_id)
        if event.finish_reason is not None:
            assert scheduler.blocks.num_free == 32 and not scheduler.has_work
            return output, event.finish_reason, event.stop_reason
    return output, None, None


def test_the_sequence_ends_with_the_last_repetition() -> None:
    ended = said([5, 1, 2, 1, 2, 1, 2, 7], RepetitionDetection(2, 0, 3))
    assert ended == ([5, 1, 2, 1, 2, 1, 2], FinishReason.REPETITION, "repetition_detected")
    assert said([1, 1, 1, 1], RepetitionDetection(2, 2, 2))[0] == [1, 1, 1, 1]
    assert said([1, 1, 1], RepetitionDetection(0, 0, 0))[1] is None
    assert said([1, 1, 1, 1, 1], RepetitionDetection(1, 0, 2), min_tokens=4)[0] == [1, 1, 1, 1]


def test_right_drafts_end_it_where_single_tokens_would() -> None:
    config = SchedulerConfig(
        max_model_len=64,
        max_num_batched_tokens=64,
        max_num_seqs=2,
        block_size=4,
        num_blocks=32,
        speculation=Speculation(4, 2, 2),
    )
    scheduler = Scheduler(config)
    params = SamplingParams(max_tokens=20, repetition_detection=RepetitionDetection(2, 0, 2))
    scheduler.add(Request("a", [1, 2, 1, 2, 1, 2], params))
    scheduler.commit(scheduler.schedule(), StepResult((1,)))
    batch = scheduler.schedule()
    assert batch.chunks[0].drafts == (2, 1, 2, 1)
    events = scheduler.commit(batch, StepResult((2,), accepted={"a": 4}))
    assert [event.token_id for event in events] == [2, 1, 2], "1 2 1 2 is the end, and two tokens more are dropped"
    assert events[-1].finish_reason is FinishReason.REPETITION
    assert scheduler.blocks.num_free == 32
