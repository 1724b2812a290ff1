"""What a caller of the scheduler may rely on: refusals, stops, aborts, failed rows."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.core.batch import Batch, Chunk, StepResult, TokenEvent
from headrace.core.invariants import check
from headrace.core.request import FinishReason, Request, SamplingParams
from headrace.core.scheduler import Scheduler, SchedulerConfig
from headrace.core.sequence import Phase, Sequence
from headrace.errors import ConfigError, InvalidRequest, InvariantError

EOS = 0


def make(**config: Any) -> Scheduler:
    shape = {"max_model_len": 32, "max_num_batched_tokens": 32, "max_num_seqs": 4, "block_size": 4, "num_blocks": 16}
    return Scheduler(SchedulerConfig(**{**shape, **config}))


def ask(name: str = "a", prompt: Any = (1, 2, 3), **params: Any) -> Request:
    return Request(name, prompt, SamplingParams(**params), eos_token_ids=frozenset({EOS}))


def turn(scheduler: Scheduler, *tokens: int, failed: dict[str, str] | None = None) -> tuple[TokenEvent, ...]:
    events = scheduler.commit(scheduler.schedule(), StepResult(tokens, failed or {}))
    check(scheduler)
    return events


class TestAdd:
    def test_a_prompt_of_the_maximum_length_is_refused_with_the_numbers(self) -> None:
        with pytest.raises(InvalidRequest, match=r"prompt has 32 tokens.*context length is 32.*at most 31") as refusal:
            make().add(ask(prompt=range(32)))
        assert (refusal.value.param, refusal.value.code) == ("prompt", "context_length_exceeded")
        make().add(ask(prompt=range(31)))

    def test_what_can_never_fit_is_refused_with_the_numbers(self) -> None:
        scheduler = make(num_blocks=3)
        with pytest.raises(InvalidRequest, match=r"5 prompt tokens and up to 8 output tokens need 4 KV blocks.*are 3"):
            scheduler.add(ask(prompt=range(5), max_tokens=8))
        scheduler.add(ask(prompt=range(5), max_tokens=7))

    def test_max_model_len_bounds_what_must_fit(self) -> None:
        make(num_blocks=8).add(ask(prompt=range(5), max_tokens=1000))

    @pytest.mark.parametrize(
        ("prompt", "params", "message"),
        [
            ((), {}, "prompt is empty"),
            ((1,), {"max_tokens": 0}, "max_tokens is 0"),
            ((1,), {"max_tokens": 3, "min_tokens": 4}, r"min_tokens is 4; it must be between 0 and max_tokens \(3\)"),
        ],
    )
    def test_nonsense_is_refused(self, prompt: Any, params: dict[str, int], message: str) -> None:
        scheduler = make()
        with pytest.raises(InvalidRequest, match=message):
            scheduler.add(ask(prompt=prompt, **params))
        assert not scheduler.has_work

    def test_an_id_can_be_used_again_only_after_its_request_has_ended(self) -> None:
        scheduler = make()
        scheduler.add(ask(max_tokens=1))
        with pytest.raises(InvalidRequest, match="request id 'a' is already in use"):
            scheduler.add(ask())
        turn(scheduler, 9)
        scheduler.add(ask())

    def test_a_prompt_is_not_copied(self) -> None:
        prompt = range(10)
        sequence = make().add(ask(prompt=prompt))
        assert sequence.request.prompt_token_ids is prompt
        assert sequence._token_ids is None
        assert (len(sequence), sequence.tokens_between(8, 10)) == (10, [8, 9])


class TestStops:
    def test_events_and_state_of_a_whole_life(self) -> None:
        scheduler = make()
        sequence = scheduler.add(ask(max_tokens=2))
        assert sequence.phase is Phase.WAITING
        batch = scheduler.schedule()
        assert batch.chunks == (Chunk(sequence, 0, 3, True),)
        assert sequence.computed == 3, "planned counts as computed"
        assert scheduler.commit(batch, StepResult((7,))) == (TokenEvent("a", 7),)
        assert sequence.token_ids == [1, 2, 3, 7]
        assert turn(scheduler, 8) == (TokenEvent("a", 8, FinishReason.LENGTH),)
        assert sequence.token_ids == [1, 2, 3, 7, 8]
        assert (sequence.num_output_tokens, sequence.finish_reason) == (2, FinishReason.LENGTH)
        assert not scheduler.has_work
        assert scheduler.blocks.num_free == 16

    @pytest.mark.parametrize(
        ("params", "tokens", "finish", "stop_reason"),
        [
            ({"max_tokens": 5}, [7, EOS], "stop", None),
            ({"max_tokens": 2}, [7, EOS], "stop", None),  # the end token wins over the length
            ({"max_tokens": 2}, [7, 7], "length", None),
            ({"max_tokens": 3, "ignore_eos": True}, [EOS, EOS, EOS], "length", None),
            ({"max_tokens": 5, "stop_token_ids": (8,)}, [7, 8], "stop", 8),
            ({"max_tokens": 5, "stop_token_ids": (8,), "ignore_eos": True}, [EOS, 8], "stop", 8),
            ({"max_tokens": 5, "stop_token_ids": (EOS,)}, [EOS], "stop", None),
            ({"max_tokens": 5, "stop_token_ids": (EOS,), "ignore_eos": True}, [EOS], "stop", EOS),
            ({"max_tokens": 5, "min_tokens": 3}, [EOS, EOS, EOS], "stop", None),
            ({"max_tokens": 5, "min_tokens": 3, "stop_token_ids": (8,)}, [8, 8, 7, 8], "stop", 8),
            ({"max_tokens": 3, "min_tokens": 3}, [EOS, 7, 7], "length", None),
        ],
    )
    def test_stop_rules(self, params: dict[str, Any], tokens: list[int], finish: str, stop_reason: int | None) -> None:
        scheduler = make()
        scheduler.add(ask(**params))
        for token in tokens[:-1]:
            assert turn(scheduler, token) == (TokenEvent("a", token),)
        assert turn(scheduler, tokens[-1]) == (TokenEvent("a", tokens[-1], FinishReason(finish), stop_reason),)

    def test_the_context_length_ends_a_sequence_even_before_min_tokens(self) -> None:
        scheduler = make(max_model_len=5)
        scheduler.add(ask(max_tokens=9, min_tokens=9))
        turn(scheduler, EOS)
        assert turn(scheduler, EOS) == (TokenEvent("a", EOS, FinishReason.LENGTH),)

    def test_a_chunk_that_does_not_end_the_prompt_gives_no_event(self) -> None:
        scheduler = make(max_num_batched_tokens=4)
        scheduler.add(ask(prompt=range(6), max_tokens=1))
        assert turn(scheduler) == ()
        assert turn(scheduler, 7) == (TokenEvent("a", 7, FinishReason.LENGTH),)

    def test_a_dropped_request_ends_with_length_and_no_token(self) -> None:
        scheduler = make(policy="v0", max_num_batched_tokens=4)
        scheduler.add(ask(prompt=range(6)))
        assert scheduler.has_work
        assert turn(scheduler) == (TokenEvent("a", None, FinishReason.LENGTH),)
        assert scheduler.counters.dropped == 1


class TestAbort:
    def test_unknown_and_ended_requests_are_ignored(self) -> None:
        scheduler = make()
        assert not scheduler.abort("nobody")
        scheduler.add(ask(max_tokens=1))
        turn(scheduler, 7)
        assert not scheduler.abort("a")

    def test_a_waiting_and_a_running_one_leave_at_once(self) -> None:
        scheduler = make(max_num_seqs=1)
        a, b = scheduler.add(ask("a")), scheduler.add(ask("b"))
        turn(scheduler, 7)
        assert scheduler.abort("b")
        assert scheduler.abort("a", FinishReason.STOP, stop_reason="###")
        assert not scheduler.abort("a")
        assert (a.finish_reason, a.stop_reason, b.finish_reason) == (FinishReason.STOP, "###", FinishReason.ABORT)
        assert not scheduler.has_work
        assert scheduler.blocks.num_free == 16

    def test_in_flight_it_keeps_its_blocks_until_commit_and_its_result_is_ignored(self) -> None:
        scheduler = make()
        a, _ = scheduler.add(ask("a")), scheduler.add(ask("b"))
        batch = scheduler.schedule()
        assert scheduler.abort("a")
        check(scheduler)
        assert a.block_table == [0], "the model may be writing there"
        assert scheduler.num_running == 1
        scheduler.add(ask("a"))  # the id is free again, and the old result must not reach the new request
        assert scheduler.commit(batch, StepResult((7, 8))) == (TokenEvent("b", 8),)
        check(scheduler)
        assert a.output_token_ids == []
        assert scheduler.blocks.num_free == 15


class TestFailures:
    def test_a_failed_row_ends_alone_with_its_reason(self) -> None:
        scheduler = make()
        scheduler.add(ask("a"))
        scheduler.add(ask("b"))
        assert turn(scheduler, 7, 8, failed={"a": "not a number in logits"}) == (
            TokenEvent("a", None, FinishReason.ERROR, error="not a number in logits"),
            TokenEvent("b", 8),
        )
        assert scheduler.blocks.num_free == 15

    def test_a_row_may_fail_in_the_middle_of_its_prompt(self) -> None:
        scheduler = make(max_num_batched_tokens=4)
        scheduler.add(ask(prompt=range(6)))
        assert turn(scheduler, failed={"a": "x"}) == (TokenEvent("a", None, FinishReason.ERROR, error="x"),)

    def test_what_it_wrote_is_not_found_again(self) -> None:
        scheduler = make(enable_prefix_caching=True)
        scheduler.add(ask("a", range(10)))
        turn(scheduler, 7, failed={"a": "x"})
        scheduler.add(ask("b", range(10)))
        assert scheduler.schedule().chunks[0].start == 0

    def test_who_shares_its_blocks_in_the_same_step_starts_over(self) -> None:
        scheduler = make(enable_prefix_caching=True)
        scheduler.add(ask("a", range(10)))
        b = scheduler.add(ask("b", range(10)))
        batch = scheduler.schedule()
        assert batch.chunks[1].start == 8
        events = scheduler.commit(batch, StepResult((7, 8), {"a": "x"}))
        check(scheduler)
        assert [event.request_id for event in events] == ["a"]
        assert (b.phase, b.output_token_ids, scheduler.counters.restarts) == (Phase.WAITING, [], 1)
        assert scheduler.counters.preemptions == 0  # it starts over, but memory was not short
        assert scheduler.schedule().chunks == (Chunk(b, 0, 10, True),)

    def test_who_does_not_look_is_not_counted_as_a_query(self) -> None:
        scheduler = make(enable_prefix_caching=True)
        scheduler.add(Request("a", range(10), SamplingParams(prompt_logprobs=1)))
        scheduler.commit(scheduler.schedule(), StepResult((7,)))
        assert scheduler.counters.prefix_queries == 0

    def test_a_result_must_fit_the_batch(self) -> None:
        scheduler = make()
        scheduler.add(ask())
        batch = scheduler.schedule()
        with pytest.raises(InvariantError, match="step 1 samples 1 tokens, its result has 2"):
            scheduler.commit(batch, StepResult((7, 8)))
        with pytest.raises(InvariantError, match="step 1 has not been committed"):
            scheduler.schedule()
        with pytest.raises(InvariantError, match="not the one in flight"):
            scheduler.commit(Batch(1, ()), StepResult(()))
        with pytest.raises(InvariantError, match=r"failures of \['b'\], which it did not compute"):
            scheduler.commit(batch, StepResult((7,), {"b": "x"}))


class TestPrefixAccounting:
    def test_tokens_are_counted_once_per_admission_however_long_the_head_waits(self) -> None:
        scheduler = make(enable_prefix_caching=True, num_blocks=5)
        scheduler.add(ask("a", range(10), max_tokens=4))
        b = scheduler.add(ask("b", range(100, 110), max_tokens=2))  # needs three blocks, two are free
        for _ in range(4):
            turn(scheduler, 7)
        assert (scheduler.counters.prefix_queries, b.phase) == (10, Phase.WAITING)
        scheduler.add(ask("c", range(10), max_tokens=1))
        for _ in range(3):
            turn(scheduler, 7)
        assert (scheduler.counters.prefix_queries, scheduler.counters.prefix_hits) == (30, 8)

    def test_cached_tokens_of_a_sequence_are_those_of_its_first_admission(self) -> None:
        scheduler = make(enable_prefix_caching=True, num_blocks=3)
        scheduler.add(ask("a", range(5), max_tokens=3))
        b = scheduler.add(ask("b", range(50, 54), max_tokens=4))
        turn(scheduler, 7, 7)
        turn(scheduler, 7)
        turn(scheduler, 7)
        turn(scheduler, 7)
        counters = scheduler.counters
        assert (counters.prefix_queries, counters.prefix_hits, b.num_cached_tokens) == (9, 0, 0)
        assert (counters.preempted_queries, counters.preempted_hits, b.num_preemptions) == (5, 4, 1)


class TestConfig:
    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"policy": "v2"}, "policy is 'v2'; use one of v1, v1-whole, v0, v0-chunked"),
            ({"scheduling_policy": "lifo"}, "scheduling_policy is 'lifo'; use one of fcfs, priority"),
            ({"hash_at": "never"}, "hash_at is 'never'"),
            ({"block_size": 0}, "block_size is 0; it must be a whole number of at least 1"),
            ({"num_blocks": 1.5}, "num_blocks is 1.5"),
            ({"watermark": 1.0}, "watermark is 1.0; it must be at least 0 and below 1"),
            ({"max_num_seqs": 33}, r"\(32\) must be greater than or equal to max_num_seqs \(33\)"),
            ({"policy": "v1-whole", "max_num_batched_tokens": 31}, r"\(31\) must be at least max_model_len \(32\)"),
            ({"long_prefill_token_threshold": 33}, r"threshold \(33\) must be at most max_model_len"),
            ({"policy": "v0", "long_prefill_token_threshold": 8}, "must be 0 with policy v0"),
            (
                {"policy": "v0-chunked", "enable_prefix_caching": True, "max_num_batched_tokens": 30},
                r"\(30\) must be a multiple of block_size \(4\)",
            ),
        ],
    )
    def test_an_illegal_value_is_named(self, config: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            make(**config)

    def test_nothing_stays_undecided(self) -> None:
        v1, v0 = make().config, make(policy="v0", num_blocks=250).config
        assert (v1.hash_at, v1.watermark, v1.watermark_blocks) == ("plan", 0.0, 0)
        assert (v0.hash_at, v0.watermark, v0.watermark_blocks) == ("after_plan", 0.01, 2)


def test_a_scheduler_that_cannot_go_on_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = make()
    scheduler.add(ask())
    monkeypatch.setattr(scheduler.blocks, "grow", lambda *args, **kwargs: False)
    with pytest.raises(InvariantError, match="no progress: 0 running and 1 waiting"):
        scheduler.schedule()


def test_sequences_are_told_apart_by_identity() -> None:
    a, b = Sequence(ask()), Sequence(ask())
    assert len({a, b}) == 2
    assert repr(a) == "Sequence('a', waiting, 0/3)"
