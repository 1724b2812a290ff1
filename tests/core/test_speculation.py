"""N-gram speculation in small worlds: what is guessed, when there is room for guesses, and what becomes of them."""

from __future__ import annotations

import random
from typing import Any

import pytest

from headrace.core.batch import Batch, StepResult
from headrace.core.invariants import check, check_batch, snapshot
from headrace.core.request import FinishReason, Request, SamplingParams
from headrace.core.scheduler import Scheduler, SchedulerConfig, Speculation
from headrace.core.speculation import NgramIndex
from headrace.errors import ConfigError, InvariantError

LOOP = [1, 2, 3, 4]  # what the requests below repeat


def slow_guess(tokens: list[int], least: int, most: int, count: int) -> list[int]:
    """The longest n-gram at the end that occurs before, at its earliest place: by looking at every place."""
    for length in range(min(most, len(tokens) - 1), least - 1, -1):
        for end in range(length, len(tokens)):
            if tokens[end - length : end] == tokens[-length:]:
                return tokens[end : end + count]
    return []


@pytest.mark.parametrize("seed", range(40))
def test_the_index_proposes_what_a_search_of_every_place_finds(seed: int) -> None:
    rng = random.Random(seed)
    least = rng.randint(1, 4)
    most = least + rng.randint(0, 3)
    alphabet = rng.choice((1, 2, 3, 8))
    index, tokens = NgramIndex(least, most), []
    while len(tokens) < 120:
        tokens += [rng.randrange(alphabet) for _ in range(rng.choice((0, 1, 1, 1, 2, 7)))]
        count = rng.randint(1, 6)
        assert list(index.propose(tokens, count)) == slow_guess(tokens, least, most, count)


def test_longer_matches_win_and_then_earlier_ones() -> None:
    index = NgramIndex(1, 3)
    #                                      earliest 3          longest match of (2, 3)
    assert index.propose([9, 3, 7, 7, 2, 3, 5, 5, 2, 3, 6, 6, 2, 3], 2) == (5, 5)
    assert NgramIndex(3, 3).propose([1, 2, 3, 9, 2, 3], 2) == ()


def test_a_token_costs_the_same_in_a_long_sequence() -> None:
    """Entries are counted, not time: one or two a token where text repeats, at most one a length."""
    rng = random.Random(1)
    tokens = [rng.randrange(50) for _ in range(4000)]
    index = NgramIndex(2, 4)
    index.propose(tokens, 4)
    assert len(tokens) < sum(map(len, index._tables)) < 3 * len(tokens)


def start(prompt: list[int], speculation: Speculation | None = None, **settings: Any) -> Scheduler:
    """A scheduler whose only request has had its prompt computed, and its first token (1)."""
    params = {"max_tokens": 12} | settings.pop("params", {})
    values = {"max_model_len": 64, "max_num_batched_tokens": 64, "max_num_seqs": 8, "block_size": 4, "num_blocks": 32}
    config = SchedulerConfig(**{**values, "speculation": speculation or Speculation(3, 3, 2), **settings})
    scheduler = Scheduler(config)
    scheduler.add(Request("a", prompt, SamplingParams(**params), frozenset({0})))
    step(scheduler)
    return scheduler


def plan(scheduler: Scheduler) -> Batch:
    before = snapshot(scheduler)
    batch = scheduler.schedule()
    check_batch(scheduler, batch, before)
    check(scheduler)
    return batch


def step(scheduler: Scheduler, token: int = 1, accepted: int = 0, batch: Batch | None = None) -> list[int | None]:
    """One step in which everybody gets `token`, behind `accepted` drafts; returns the tokens of "a"."""
    batch = batch or plan(scheduler)
    counts = {chunk.sequence.request_id: min(accepted, len(chunk.drafts)) for chunk in batch.chunks}
    tokens = (token,) * sum(chunk.samples for chunk in batch.chunks)
    events = scheduler.commit(batch, StepResult(tokens, accepted=counts))
    check(scheduler)
    return [event.token_id for event in events if event.request_id == "a"]


def test_drafts_stand_behind_a_decode_and_count_in_its_length() -> None:
    scheduler = start([*LOOP, *LOOP])  # ... 3 4, then 1 was sampled: (4, 1) was followed by 2 3 4
    (chunk,) = plan(scheduler).chunks
    assert (chunk.start, chunk.length, chunk.drafts, chunk.samples) == (8, 4, (2, 3, 4), True)
    assert chunk.token_ids == [1, 2, 3, 4]
    assert chunk.sequence.computed == 9, "drafts are not computed before the model has agreed"


def test_right_drafts_and_the_token_behind_them_are_one_step() -> None:
    scheduler = start([*LOOP, *LOOP])
    assert step(scheduler, token=1, accepted=3) == [2, 3, 4, 1]
    sequence = scheduler.get("a")
    assert sequence is not None and sequence.output_token_ids == [1, 2, 3, 4, 1]
    assert (sequence.computed, sequence.num_tokens, len(sequence.block_table)) == (12, 13, 3)


def test_wrong_drafts_leave_nothing_behind() -> None:
    scheduler = start([*LOOP, *LOOP], enable_prefix_caching=True, num_blocks=5)
    free = scheduler.blocks.num_free
    batch = plan(scheduler)  # positions 8 .. 11: a block that the decode needs anyway
    assert step(scheduler, token=7, accepted=1, batch=batch) == [2, 7]
    sequence = scheduler.get("a")
    assert sequence is not None and (sequence.computed, sequence.num_tokens) == (10, 11)
    assert scheduler.blocks.num_free == free - 1
    again = Request("b", [*LOOP, *LOOP, 1, 2, 3, 4, 9], SamplingParams(max_tokens=1))
    assert len(scheduler.blocks.lookup(type(sequence)(again))) == 2, "the block with rejected tokens is not found"


def test_blocks_that_only_wrong_drafts_needed_are_free_again() -> None:
    scheduler = start(LOOP[:2] * 3, block_size=2, num_blocks=16)
    before = scheduler.blocks.num_free
    batch = plan(scheduler)
    assert scheduler.blocks.num_free == before - 2
    step(scheduler, token=7, accepted=0, batch=batch)
    assert scheduler.blocks.num_free == before - 1


def test_blocks_of_right_drafts_are_found_by_the_next_request() -> None:
    scheduler = start([*LOOP, *LOOP], enable_prefix_caching=True)
    step(scheduler, token=1, accepted=3)
    other = Request("b", [*LOOP, *LOOP, 1, 2, 3, 4, 9], SamplingParams(max_tokens=1))
    scheduler.add(other)
    batch = plan(scheduler)
    assert [chunk.start for chunk in batch.chunks if chunk.sequence.request is other] == [12]


@pytest.mark.parametrize(
    ("settings", "drafts"),
    [
        ({"params": {"max_tokens": 4}}, 2),  # one is out, two drafts and the token behind them
        ({"params": {"max_tokens": 2}}, 0),
        ({"max_model_len": 11}, 1),
        ({"max_num_batched_tokens": 3, "max_num_seqs": 1}, 2),
        ({"long_prefill_token_threshold": 2}, 1),
        ({"block_size": 5, "num_blocks": 2, "params": {"max_tokens": 2}}, 0),
        ({"speculation": Speculation(1, 2, 2)}, 1),
        ({"speculation": Speculation(3, 7, 7)}, 0),
    ],
)
def test_limits_shorten_drafts(settings: dict[str, Any], drafts: int) -> None:
    scheduler = start([*LOOP, *LOOP], **settings)
    while scheduler.get("a").num_tokens < 9:  # type: ignore[union-attr]
        step(scheduler)  # a prompt cut into pieces
    (chunk,) = plan(scheduler).chunks
    assert len(chunk.drafts) == drafts


def test_drafts_take_only_what_prompts_and_decodes_leave() -> None:
    scheduler = start([*LOOP, *LOOP], max_num_batched_tokens=12, max_num_seqs=4)
    scheduler.add(Request("b", range(100, 110), SamplingParams(max_tokens=4)))
    decode, prompt = plan(scheduler).chunks
    assert (len(decode.drafts), prompt.length) == (1, 10)


def test_nobody_is_preempted_for_a_draft() -> None:
    scheduler = start([*LOOP, *LOOP], num_blocks=5, speculation=Speculation(4, 3, 2), params={"max_tokens": 12})
    scheduler.add(Request("b", range(100, 108), SamplingParams(max_tokens=4)))
    batch = plan(scheduler)
    assert not batch.preempted and batch.admitted
    assert len(batch.chunks[0].drafts) == 3, "what is left in the block that the decode needs anyway"


@pytest.mark.parametrize(
    ("params", "accepted", "expected", "reason"),
    [
        ({"stop_token_ids": (3,)}, 3, [2, 3], FinishReason.STOP),
        ({"stop_token_ids": (3,), "min_tokens": 4}, 3, [2, 3, 4, 1], None),
        ({"max_tokens": 5}, 3, [2, 3, 4, 1], FinishReason.LENGTH),
    ],
)
def test_an_end_among_the_drafts_drops_what_stands_behind_it(
    params: dict[str, Any], accepted: int, expected: list[int], reason: FinishReason | None
) -> None:
    scheduler = start([*LOOP, *LOOP], params=params, enable_prefix_caching=True)
    sequence = scheduler.get("a")
    assert sequence is not None
    assert step(scheduler, accepted=accepted) == expected
    assert sequence.finish_reason is reason
    if reason:
        assert scheduler.blocks.num_free == 32


def test_an_abort_in_flight_gives_the_blocks_of_drafts_back() -> None:
    scheduler = start([*LOOP, *LOOP], block_size=2, num_blocks=16)
    batch = plan(scheduler)
    scheduler.abort("a")
    assert step(scheduler, accepted=3, batch=batch) == []
    assert scheduler.blocks.num_free == 16
    assert scheduler.counters.drafts == 0


def test_a_failed_row_takes_its_drafts_with_it() -> None:
    scheduler = start([*LOOP, *LOOP], enable_prefix_caching=True)
    batch = plan(scheduler)
    (event,) = scheduler.commit(batch, StepResult((1,), {"a": "not a number"}, {"a": 3}))
    assert event.finish_reason is FinishReason.ERROR and event.token_id is None
    assert scheduler.blocks.num_free == 32
    check(scheduler)


def test_counters_tell_how_good_the_guesses_were() -> None:
    scheduler = start([*LOOP, *LOOP])
    step(scheduler, token=1, accepted=3)
    step(scheduler, token=7, accepted=1)
    counters = scheduler.counters
    assert (counters.drafts, counters.draft_tokens, counters.accepted_tokens) == (2, 6, 4)
    assert counters.accepted_at == [2, 1, 1]


def test_a_result_cannot_accept_more_than_there_is() -> None:
    scheduler = start([*LOOP, *LOOP])
    with pytest.raises(InvariantError, match="accepts 4 of the 3 drafts of a"):
        scheduler.commit(plan(scheduler), StepResult((1,), accepted={"a": 4}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0, 2, 2), "num_speculative_tokens is 0; it must be a whole number of at least 1"),
        ((True, 2, 2), "num_speculative_tokens is True"),
        ((4, 2, 0), "prompt_lookup_min is 0"),
        ((4, 2, 3), r"prompt_lookup_min \(3\) must be at most prompt_lookup_max \(2\)"),
    ],
)
def test_settings_that_mean_nothing_are_refused(values: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Speculation(*values)
