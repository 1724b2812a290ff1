"""vLLM V1's decisions, step by step, written by hand from its rules (T budget, S seats, b block size, N blocks)."""

from __future__ import annotations

import pytest
from traces import Ask, add, make_scheduler, play, step


def test_a_prompt_is_cut_at_the_budget_and_goes_on_behind_the_decodes() -> None:
    asks = [Ask("A", 5, 3), Ask("B", 20, 2), Ask("C", 3, 2)]
    assert play(asks, policy="v1", max_num_batched_tokens=8, max_num_seqs=4) == [
        "A[0:5]* B[0:3] +A +B",
        "A[5:6]* B[3:10]",  # B takes all the rest: C cannot come in although a seat is free
        "A[6:7]* B[10:17]",
        "B[17:20]* C[0:3]* +C",
        "B[20:21]* C[3:4]*",
    ]


def test_seats_bound_the_running_requests() -> None:
    asks = [Ask("A", 2, 2), Ask("B", 2, 1), Ask("C", 2, 1)]
    assert play(asks, policy="v1", max_num_batched_tokens=16, max_num_seqs=1) == [
        "A[0:2]* +A",
        "A[2:3]*",
        "B[0:2]* +B",
        "C[0:2]* +C",
    ]


def test_with_a_threshold_short_prompts_slip_past_long_ones() -> None:
    asks = [Ask("A", 9, 1), Ask("B", 2, 1)]
    shape = {"policy": "v1", "max_num_batched_tokens": 8, "max_num_seqs": 4}
    assert play(asks, **shape) == ["A[0:8] +A", "A[8:9]* B[0:2]* +B"]
    assert play(asks, **shape, long_prefill_token_threshold=3) == ["A[0:3] B[0:2]* +A +B", "A[3:6]", "A[6:9]*"]


def test_several_long_prompts_advance_together_and_starve_who_waits() -> None:
    asks = [Ask("A", 9, 1), Ask("B", 9, 1), Ask("C", 2, 1)]
    shape = {"policy": "v1", "max_num_batched_tokens": 6, "max_num_seqs": 4}
    assert play(asks, **shape, long_prefill_token_threshold=3) == [
        "A[0:3] B[0:3] +A +B",
        "A[3:6] B[3:6]",
        "A[6:9]* B[6:9]*",
        "C[0:2]* +C",
    ]


def test_a_decode_behind_capped_chunks_gets_nothing_when_they_take_the_budget() -> None:
    scheduler = make_scheduler(
        policy="v1", max_num_batched_tokens=6, max_num_seqs=3, long_prefill_token_threshold=3, reserve_full=False
    )
    add(scheduler, Ask("C", 1, 3))
    assert step(scheduler) == "C[0:1]* +C"
    add(scheduler, Ask("A", 12, 1))
    add(scheduler, Ask("B", 12, 1))
    assert step(scheduler) == "C[1:2]* A[0:3] B[0:2] +A +B"
    # Position in the list is all that counts.  C came first, so stand it behind them by hand.
    running = scheduler.state.running
    running[0].order = 99
    running.append(running.pop(0))
    assert step(scheduler) == "A[3:6] B[2:5]"
    assert step(scheduler) == "A[6:9] B[5:8]"
    assert step(scheduler) == "A[9:12]* B[8:11]"
    assert step(scheduler) == "B[11:12]* C[2:3]*"


def test_out_of_blocks_the_newest_is_evicted_and_nobody_is_admitted_in_that_step() -> None:
    asks = [Ask("A", 4, 8), Ask("B", 4, 8), Ask("C", 2, 2, at=6)]
    shape = {"max_num_batched_tokens": 16, "max_num_seqs": 4, "num_blocks": 4}
    assert play(asks, policy="v1", **shape) == [
        "A[0:4]* B[0:4]* +A +B",
        "A[4:5]* B[4:5]*",
        "A[5:6]* B[5:6]*",
        "A[6:7]* B[6:7]*",
        "A[7:8]* B[7:8]*",
        "A[8:9]* -B",  # one block is free now and would do for C
        "A[9:10]*",  # B heads the line again and needs three: nobody looks past it
        "A[10:11]*",
        "B[0:9]* C[0:2]* +B +C",  # prompt and output computed again
        "B[9:10]* C[2:3]*",
        "B[10:11]*",
    ]


def test_the_last_in_line_evicts_itself() -> None:
    asks = [Ask("A", 5, 3), Ask("B", 4, 4)]
    assert play(asks, policy="v1", max_num_batched_tokens=16, max_num_seqs=4, num_blocks=3) == [
        "A[0:5]* B[0:4]* +A +B",
        "A[5:6]* -B",
        "A[6:7]*",
        "B[0:5]* +B",
        "B[5:6]*",
        "B[6:7]*",
    ]


@pytest.mark.parametrize(
    ("reserve_full", "expected"),
    [
        (True, ["A[0:4]* +A", "A[4:5]*", "B[0:4] +B", "B[4:8]", "B[8:12]*"]),
        (False, ["A[0:4]* +A", "A[4:5]* B[0:3] +B", "B[3:7]", "B[7:11]", "B[11:12]*"]),
    ],
)
def test_admission_reserves_the_whole_sequence_or_only_its_first_chunk(reserve_full: bool, expected: list[str]) -> None:
    asks = [Ask("A", 4, 2), Ask("B", 12, 1)]
    shape = {"max_num_batched_tokens": 4, "max_num_seqs": 4, "num_blocks": 4}
    assert play(asks, policy="v1", reserve_full=reserve_full, **shape) == expected


def test_the_watermark_counts_only_while_something_runs() -> None:
    asks = [Ask("A", 8, 2), Ask("B", 4, 1)]
    shape = {"max_num_batched_tokens": 16, "max_num_seqs": 4, "num_blocks": 4}
    assert play(asks, policy="v1", **shape)[0] == "A[0:8]* B[0:4]* +A +B"
    # Half of four blocks stay free: A, alone, may take them; B may not take one of the two that are left.
    assert play(asks, policy="v1", watermark=0.5, **shape) == ["A[0:8]* +A", "A[8:9]*", "B[0:4]* +B"]


@pytest.mark.parametrize(
    ("hash_at", "first"),
    [
        ("plan", "A[0:10]* B[8:10]* +A +B"),
        ("after_plan", "A[0:10]* B[0:10]* +A +B"),
        ("after_step", "A[0:10]* B[0:10]* +A +B"),
    ],
)
def test_equal_prompts_of_one_step_share_only_when_keys_are_known_at_plan_time(hash_at: str, first: str) -> None:
    same = tuple(range(10))
    asks = [Ask("A", same, 2), Ask("B", same, 2), Ask("C", same, 1, at=2)]
    shape = {"max_num_batched_tokens": 32, "max_num_seqs": 4, "enable_prefix_caching": True}
    assert play(asks, policy="v1", hash_at=hash_at, **shape) == [first, "A[10:11]* B[10:11]* C[8:10]* +C"]


def test_a_fully_cached_prompt_computes_its_last_block_again() -> None:
    same = tuple(range(8))
    asks = [Ask("A", same, 1), Ask("B", same, 1, at=2), Ask("C", (*same, 8), 1, at=3)]
    shape = {"max_num_batched_tokens": 32, "max_num_seqs": 4, "enable_prefix_caching": True}
    assert play(asks, policy="v1", **shape) == ["A[0:8]* +A", "B[4:8]* +B", "C[8:9]* +C"]


def test_a_preempted_sequence_finds_its_own_blocks_again() -> None:
    asks = [Ask("A", 5, 3), Ask("B", 4, 4)]
    shape = {"max_num_batched_tokens": 16, "max_num_seqs": 4, "num_blocks": 3, "enable_prefix_caching": True}
    assert play(asks, policy="v1", **shape)[1:4] == ["A[5:6]* -B", "A[6:7]*", "B[4:5]* +B"]


def test_whole_prompts_wait_for_the_rest_of_the_budget_and_block_the_line() -> None:
    asks = [Ask("A", 3, 4), Ask("B", 6, 1), Ask("C", 2, 1)]
    shape = {"max_num_batched_tokens": 8, "max_num_seqs": 4, "max_model_len": 8}
    assert play(asks, policy="v1-whole", **shape) == [
        "A[0:3]* +A",  # five tokens are left: B needs six, and C, which would fit, stands behind it
        "A[3:4]* B[0:6]* +B",  # a whole prompt inside a mixed batch
        "A[4:5]* C[0:2]* +C",
        "A[5:6]*",
    ]
    assert play(asks, policy="v1", **shape)[0] == "A[0:3]* B[0:5] +A +B"


def test_by_priority_the_least_important_is_evicted_even_after_it_was_served() -> None:
    asks = [Ask("A", 5, 8, priority=1), Ask("B", 7, 4, at=2, priority=0)]
    shape = {"max_num_batched_tokens": 16, "max_num_seqs": 4, "num_blocks": 4}
    assert play(asks, policy="v1", scheduling_policy="priority", **shape) == [
        "A[0:5]* +A",
        "A[5:6]* B[0:7]* +B",
        "A[6:7]* B[7:8]*",
        "B[8:9]* -A",  # A had its chunk [7:8] in this step; it is withdrawn
        "B[9:10]*",
        "A[0:8]* +A",
        "A[8:9]*",
        "A[9:10]*",
        "A[10:11]*",
        "A[11:12]*",
    ]


def test_by_priority_a_late_important_request_overtakes_who_waits_but_not_who_runs() -> None:
    asks = [Ask("A", 2, 3, priority=5), Ask("B", 2, 1, priority=5), Ask("C", 2, 1, at=2, priority=1)]
    shape = {"max_num_batched_tokens": 16, "max_num_seqs": 1}
    assert play(asks, policy="v1", scheduling_policy="priority", **shape) == [
        "A[0:2]* +A",
        "A[2:3]*",
        "A[3:4]*",
        "C[0:2]* +C",
        "B[0:2]* +B",
    ]
