"""vLLM V0's decisions, step by step, written by hand from its rules."""

from __future__ import annotations

from traces import Ask, add, make_scheduler, play, step

from headrace.core.state import NextStep


def test_prefill_first_stalls_every_decode() -> None:
    asks = [Ask("A", 3, 3), Ask("B", 6, 2, at=2), Ask("C", 2, 2, at=2)]
    assert play(asks, policy="v0", max_num_batched_tokens=8, max_num_seqs=4, max_model_len=8) == [
        "A[0:3]* +A",
        "B[0:6]* C[0:2]* +B +C",  # A gets nothing
        "A[3:4]* B[6:7]* C[2:3]*",
        "A[4:5]*",
    ]


def test_a_prompt_that_does_not_fit_whole_waits_for_the_next_prefill_step() -> None:
    asks = [Ask("A", 5, 2), Ask("B", 5, 1), Ask("C", 3, 1)]
    assert play(asks, policy="v0", max_num_batched_tokens=8, max_num_seqs=4, max_model_len=8) == [
        "A[0:5]* +A",  # B does not fit into the three tokens left; C, behind it, would
        "B[0:5]* C[0:3]* +B +C",
        "A[5:6]*",
    ]


def test_running_sequences_cost_seats() -> None:
    asks = [Ask("A", 2, 3), Ask("B", 2, 2), Ask("C", 2, 1)]
    assert play(asks, policy="v0", max_num_batched_tokens=8, max_num_seqs=2, max_model_len=8) == [
        "A[0:2]* B[0:2]* +A +B",
        "A[2:3]* B[2:3]*",
        "C[0:2]* +C",
        "A[3:4]*",
    ]


def test_never_drops_later_waits() -> None:
    # A quarter of eight blocks stays free at admission.
    asks = [Ask("C", 28, 2), Ask("A", 20, 4), Ask("B", 8, 1)]
    shape = {"max_num_batched_tokens": 32, "max_num_seqs": 4, "max_model_len": 32, "num_blocks": 8}
    assert play(asks, policy="v0", watermark=0.25, **shape) == [
        "A[0:20]* +A !C",  # C needs seven blocks: never.  B needs two of the three left: later
        "A[20:21]*",
        "A[21:22]*",
        "A[22:23]*",
        "B[0:8]* +B",
    ]


def test_a_prompt_above_the_budget_is_dropped() -> None:
    asks = [Ask("A", 9, 1), Ask("B", 8, 1)]
    assert play(asks, policy="v0", max_num_batched_tokens=8, max_num_seqs=4) == ["B[0:8]* +B !A"]


def test_appending_wants_a_free_block_even_when_the_last_one_has_a_place() -> None:
    asks = [Ask("A", 5, 4), Ask("B", 5, 4)]
    shape = {"max_num_batched_tokens": 16, "max_num_seqs": 4, "max_model_len": 16, "num_blocks": 4}
    assert play(asks, policy="v0", **shape) == [
        "A[0:5]* B[0:5]* +A +B",
        "A[5:6]* -B",
        "B[0:6]* +B",
        "A[6:7]* -B",
        "B[0:7]* +B",
        "A[7:8]* -B",
        "B[0:8]* +B",
    ]
    # V1 evicts only when a block is really needed, and here it never is.
    assert [text for text in play(asks, policy="v1", **shape) if "-" in text] == []


def test_alone_without_a_free_block_it_evicts_itself_and_comes_back() -> None:
    shape = {"max_num_batched_tokens": 8, "max_num_seqs": 1, "max_model_len": 8, "num_blocks": 2}
    assert play([Ask("A", 6, 2)], policy="v0", **shape) == ["A[0:6]* +A", "-A", "A[0:7]* +A"]


def test_the_oldest_evicted_comes_back_first() -> None:
    asks = [Ask("A", 4, 6), Ask("B", 4, 6), Ask("C", 4, 6)]
    shape = {"max_num_batched_tokens": 16, "max_num_seqs": 4, "max_model_len": 16, "num_blocks": 5}
    assert play(asks, policy="v0", **shape)[:5] == [
        "A[0:4]* B[0:4]* C[0:4]* +A +B +C",
        "A[4:5]* B[4:5]* -C",  # two free blocks for three: the newest not yet served goes, which frees one
        "A[5:6]* B[5:6]*",  # C needs two blocks and one is free
        "A[6:7]* B[6:7]*",
        "A[7:8]* B[7:8]*",
    ]


def test_a_full_hit_computes_one_token() -> None:
    same = tuple(range(8))
    asks = [Ask("A", same, 1), Ask("B", same, 1, at=2)]
    shape = {"max_num_batched_tokens": 32, "max_num_seqs": 4, "max_model_len": 32, "enable_prefix_caching": True}
    assert play(asks, policy="v0", **shape) == ["A[0:8]* +A", "B[7:8]* +B"]
    assert play(asks, policy="v0-chunked", **shape) == ["A[0:8]* +A", "B[7:8]* +B"]


def test_by_priority_the_running_make_way_for_a_better_one_that_cannot_come_in() -> None:
    asks = [Ask("A", 3, 4, priority=5), Ask("B", 3, 1, at=3, priority=1)]
    shape = {"max_num_batched_tokens": 8, "max_num_seqs": 1, "max_model_len": 8}
    assert play(asks, policy="v0", scheduling_policy="priority", **shape) == [
        "A[0:3]* +A",
        "A[3:4]*",
        "-A",
        "B[0:3]* +B",
        "A[0:5]* +A",
        "A[5:6]*",
    ]


def test_chunked_serves_decodes_then_chunks_then_new_prompts_and_batches_prompts_first() -> None:
    asks = [Ask("A", 5, 4), Ask("B", 14, 2), Ask("C", 2, 2, at=2)]
    assert play(asks, policy="v0-chunked", max_num_batched_tokens=8, max_num_seqs=4) == [
        "A[0:5]* B[0:3] +A +B",
        "B[3:10] A[5:6]*",
        "C[0:2]* B[10:14]* A[6:7]* +C",
        "A[7:8]* B[14:15]* C[2:3]*",
    ]


def test_chunked_takes_the_blocks_of_the_whole_prompt_at_admission() -> None:
    held = {}
    for policy in ("v0-chunked", "v1"):
        scheduler = make_scheduler(policy=policy, max_num_batched_tokens=4, max_num_seqs=4)
        add(scheduler, Ask("A", 14, 1))
        assert step(scheduler) == "A[0:4] +A"
        held[policy] = scheduler.config.num_blocks - scheduler.blocks.num_free
    assert held == {"v0-chunked": 4, "v1": 1}


def test_chunked_admits_after_an_eviction_and_the_evicted_queue_up_afterwards() -> None:
    asks = [Ask("A", 6, 4), Ask("B", 6, 4), Ask("C", 7, 2), Ask("D", 3, 2, at=2)]
    shape = {"max_num_batched_tokens": 32, "max_num_seqs": 4, "max_model_len": 32, "num_blocks": 6}
    assert play(asks, policy="v0-chunked", **shape)[:3] == [
        "A[0:6]* B[0:6]* C[0:7]* +A +B +C",
        "D[0:3]* A[6:7]* B[6:7]* +D -C",  # D overtakes C, which was evicted a moment before
        "A[7:8]* B[7:8]* D[3:4]*",
    ]


def test_chunked_with_prefix_caching_rounds_the_budget_down_to_blocks() -> None:
    asks = [Ask("A", 2, 3), Ask("B", 9, 1)]
    shape = {"policy": "v0-chunked", "max_num_batched_tokens": 8, "max_num_seqs": 4}
    assert play(asks, **shape) == ["A[0:2]* B[0:6] +A +B", "B[6:9]* A[2:3]*", "A[3:4]*"]
    assert play(asks, **shape, enable_prefix_caching=True) == [
        "A[0:2]* B[0:4] +A +B",  # six tokens left, four used
        "B[4:8] A[2:3]*",
        "B[8:9]* A[3:4]*",
    ]


def test_chunked_keeps_the_unserved_in_front_so_the_queue_rotates() -> None:
    scheduler = make_scheduler(policy="v0-chunked", max_num_batched_tokens=4, max_num_seqs=3)
    for ask in (Ask("P", 10, 2), Ask("Q", 10, 2), Ask("R", 2, 4)):
        add(scheduler, ask)
    # One sequence a request never leaves two unfinished prompts behind, so seat them by hand.
    for _ in range(3):
        head = scheduler.state.waiting.head()
        assert scheduler.blocks.grow(head, head.num_tokens)
        scheduler.state.admit(NextStep(left=0), 0)
    trace = []
    for _ in range(5):
        order = "".join(sequence.request_id for sequence in scheduler.state.running)
        trace.append(f"{order}: {step(scheduler)}")
    assert trace == [
        "PQR: P[0:4]",
        "QRP: Q[0:4]",  # Q and R got nothing and stand before P now
        "RPQ: R[0:2]* P[4:6]",
        "QRP: Q[4:8]",  # the chunk that was left out goes before the decode, and takes all
        "RPQ: P[6:9] R[2:3]*",
    ]
