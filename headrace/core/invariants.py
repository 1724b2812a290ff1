"""What must always hold.  Slow and obvious on purpose; for tests, the engine's debug mode and the simulator.

`check` holds between any two calls, `check_batch` right after `schedule`.  Both raise InvariantError.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping
from typing import NoReturn

from headrace.core.batch import Batch, Chunk
from headrace.core.blocks import Room, _digest
from headrace.core.queues import rank
from headrace.core.request import FinishReason
from headrace.core.scheduler import Scheduler
from headrace.core.sequence import Phase, Sequence
from headrace.errors import InvariantError


def snapshot(scheduler: Scheduler) -> dict[Sequence, int]:
    """`computed` of every running sequence; taken before `schedule`, for `check_batch`."""
    return {sequence: sequence.computed for sequence in scheduler.state.running}


def check(scheduler: Scheduler) -> None:
    """Blocks, queues and the prefix cache are consistent.  O(blocks + tokens in flight)."""
    _check_queues(scheduler)
    _check_sequences(scheduler)
    _check_blocks(scheduler)
    _check_prefix_cache(scheduler)


def check_batch(scheduler: Scheduler, batch: Batch, before: Mapping[Sequence, int] | None = None) -> None:
    """The step just planned keeps budget, seats, order and promises of its policy.

    `before` is the `snapshot` from before `schedule`; with it, chunks must start where the last one ended.
    """
    _check_chunks(scheduler, batch, before)
    _check_changes(scheduler, batch)
    _check_nobody_idles(scheduler, batch)


def _fail(text: str) -> NoReturn:
    raise InvariantError(text)


def _check_queues(scheduler: Scheduler) -> None:
    state, config = scheduler.state, scheduler.config
    waiting, running = list(state.waiting), state.running
    if len(waiting) != len(state.waiting):
        _fail(f"the waiting queue counts {len(state.waiting)} sequences and holds {len(waiting)}")
    for sequence, times in Counter([*waiting, *running, *scheduler.retiring]).items():
        if times > 1:
            _fail(f"{sequence} is queued {times} times")
    for phase, queue in ((Phase.WAITING, waiting), (Phase.RUNNING, running), (Phase.FINISHED, scheduler.retiring)):
        for sequence in queue:
            if sequence.phase is not phase:
                _fail(f"{sequence} stands in the {phase.value} queue")
    dropped = [] if scheduler.in_flight is None else list(scheduler.in_flight.dropped)
    queued = {sequence.request_id: sequence for sequence in [*waiting, *running, *dropped]}
    if queued != scheduler.live:
        _fail(f"requests lost or forgotten: {sorted(queued.keys() ^ scheduler.live.keys())}")
    if len(running) > config.max_num_seqs:
        _fail(f"{len(running)} sequences run, max_num_seqs is {config.max_num_seqs}")
    if waiting and not state.is_fcfs and state.waiting.head() is not min(waiting, key=rank):
        _fail("the head of the waiting queue is not the best by priority")
    if state.is_fcfs and config.policy.startswith("v1") and not scheduler.counters.restarts:
        # V1 admits from the head to the tail of `running` and evicts that tail to the head: one line in all.
        line = [sequence.order for sequence in [*running, *waiting]]
        if line != sorted(line):
            _fail("somebody overtook an earlier request under first come first served")


def _check_sequences(scheduler: Scheduler) -> None:
    state, is_v1 = scheduler.state, scheduler.config.policy.startswith("v1")
    # Drafts have blocks while they are computed, and at no other time.
    chunks = () if scheduler.in_flight is None else scheduler.in_flight.chunks
    ahead = {chunk.sequence: len(chunk.drafts) for chunk in chunks}
    for sequence in state.waiting:
        if sequence.block_table or sequence.computed or sequence.num_published:
            _fail(f"{sequence} waits and still holds blocks or computed tokens")
    for sequence in state.running:
        least = 0 if scheduler.in_flight else 1
        if sequence.num_tokens - sequence.computed < least:
            _fail(f"{sequence} runs and has nothing to compute")
        if sequence.num_tokens >= sequence.length_limit:
            _fail(f"{sequence} is past its limit of {sequence.length_limit} tokens")
        covered = sequence.computed if is_v1 else max(sequence.computed, sequence.prefill_length)
        covered += ahead.get(sequence, 0)
        if len(sequence.block_table) != state.blocks.blocks_for(covered):
            _fail(f"{sequence} holds {len(sequence.block_table)} blocks for {covered} tokens")
        if sequence.num_published * state.blocks.block_size > sequence.computed:
            _fail(f"{sequence} has published {sequence.num_published} blocks")


def _check_blocks(scheduler: Scheduler) -> None:
    blocks = scheduler.blocks
    free = [*blocks._blank, *blocks._findable]
    if len(free) != blocks.num_free or len(set(free)) != len(free):
        _fail(f"{blocks.num_free} free blocks counted, {len(set(free))} different ones found")
    owners: Counter[int] = Counter()
    for sequence in [*scheduler.state.running, *scheduler.retiring]:
        if len(set(sequence.block_table)) != len(sequence.block_table):
            _fail(f"{sequence} holds a block twice: {sequence.block_table}")
        owners.update(sequence.block_table)
    for block in range(blocks.num_blocks):
        if blocks._refs[block] != owners[block]:
            _fail(f"block {block} has {owners[block]} owners and a reference count of {blocks._refs[block]}")
    if owners.keys() & set(free) or len(owners) + len(free) != blocks.num_blocks:
        _fail(f"{len(free)} blocks free, {len(owners)} in use, {blocks.num_blocks} in all")


def _check_prefix_cache(scheduler: Scheduler) -> None:
    blocks = scheduler.blocks
    holders = {key: [block, *blocks._twins.get(key, [])] for key, block in blocks._by_key.items()}
    listed = {block: key for key, found in holders.items() for block in found}
    keyed = {block: key for block, key in enumerate(blocks._keys) if key is not None}
    if listed != keyed or blocks._twins.keys() - blocks._by_key.keys():
        _fail("the table of cached prefixes and the blocks' own keys disagree")
    if keyed and not blocks.enable_prefix_caching:
        _fail("blocks are findable although prefix caching is off")
    if any(block in keyed for block in blocks._blank) or any(block not in keyed for block in blocks._findable):
        _fail("a blank block is findable, or a findable one is blank")
    for sequence in scheduler.state.running:
        for index in range(sequence.num_published):
            held = blocks._keys[sequence.block_table[index]]
            start = index * blocks.block_size
            tokens = sequence.tokens_between(start, start + blocks.block_size)
            if held is not None and held[1] != array("q", tokens).tobytes():
                _fail(f"block {index} of {sequence} is findable as something else")
    # Release order: the tail of a sequence goes first, so no free block outlives the block before it.  (After a
    # failed row this may happen: its blocks are forgotten from the head on, also those that others still use.)
    if scheduler.counters.failed:
        return
    place = {block: index for index, block in enumerate(blocks._findable)}
    before = {_digest(*key): key for key in holders}
    for block, index in place.items():
        parent = before.get(keyed[block][0])
        if parent is not None and all(place.get(holder, len(place)) < index for holder in holders[parent]):
            _fail(f"cached block {block} would outlive the one before it: released in the wrong order")


def _check_chunks(scheduler: Scheduler, batch: Batch, before: Mapping[Sequence, int] | None) -> None:
    config, blocks = scheduler.config, scheduler.blocks
    size, running = config.block_size, set(scheduler.state.running)
    if batch.num_tokens > config.max_num_batched_tokens:
        _fail(f"{batch.num_tokens} tokens planned, max_num_batched_tokens is {config.max_num_batched_tokens}")
    writers: set[int] = set()
    if len({chunk.sequence for chunk in batch.chunks}) != len(batch.chunks):
        _fail("a sequence has two chunks in one step")
    for sequence, start, length, samples, drafts in batch.chunks:
        end = start + length - len(drafts)
        if sequence not in running:
            _fail(f"{sequence} is served and does not run")
        if length < 1 or end > sequence.num_tokens or end != sequence.computed:
            _fail(f"{sequence} is served [{start}, {end})")
        if samples != (end == sequence.num_tokens):
            _fail(f"{sequence} samples at {end}")
        if drafts:
            _check_drafts(scheduler, Chunk(sequence, start, length, samples, drafts))
        if length > config.long_prefill_token_threshold > 0:
            _fail(f"{sequence} gets {length} tokens at once, above long_prefill_token_threshold")
        is_full_hit = length == 1 and end == sequence.num_tokens and sequence in batch.admitted
        written = sequence.block_table[start // size : (start + length - 1) // size + 1]
        if is_full_hit:
            written = []  # V0 writes the last token of a cached prompt again, where it stands
        for block in written:
            # Same-step hits may already refer to it, but only when keys are known at plan time.
            if block in writers or (blocks._refs[block] != 1 and config.hash_at != "plan"):
                _fail(f"{sequence} writes block {block}, which it shares")
        writers.update(written)
        if before is not None:
            continues = start == before[sequence] if sequence in before else sequence in batch.admitted
            if not continues:
                _fail(f"{sequence} is served from {start}, which is not where it stood")
        if sequence in batch.admitted and start % size and not is_full_hit:
            _fail(f"{sequence} begins at {start}, inside a block")
        if config.policy in ("v0", "v1-whole") and not samples and length != config.long_prefill_token_threshold:
            _fail(f"{sequence} is cut at {end}, although prompts are computed whole")


def _check_drafts(scheduler: Scheduler, chunk: Chunk) -> None:
    speculation, (sequence, start, length, _, drafts) = scheduler.config.speculation, chunk
    if speculation is None or len(drafts) > speculation.num_speculative_tokens:
        _fail(f"{sequence} has {len(drafts)} drafts, which is more than num_speculative_tokens")
    if start < sequence.prefill_length or length != 1 + len(drafts):
        _fail(f"{sequence} has drafts behind a chunk of its prompt")
    if sequence.num_tokens + len(drafts) + 1 > sequence.length_limit:
        _fail(f"{sequence} has drafts beyond its limit of {sequence.length_limit} tokens")
    blocks = scheduler.blocks
    for block in sequence.block_table[blocks.blocks_for(sequence.computed) :]:
        if blocks._refs[block] != 1 or blocks._keys[block] is not None:
            _fail(f"block {block} with drafts of {sequence} is shared or findable")


def _check_changes(scheduler: Scheduler, batch: Batch) -> None:
    config, state = scheduler.config, scheduler.state
    served = {chunk.sequence for chunk in batch.chunks}
    waiting, is_v1 = set(state.waiting), config.policy.startswith("v1")
    for sequence in batch.admitted:
        if sequence not in served:
            _fail(f"{sequence} was admitted and is not served")
    for sequence in batch.preempted:
        if sequence not in waiting or sequence in served:
            _fail(f"{sequence} was preempted and does not wait")
    for sequence in batch.dropped:
        if sequence.phase is not Phase.FINISHED or sequence.finish_reason is not FinishReason.LENGTH:
            _fail(f"{sequence} was dropped and has not ended")
    if is_v1 and batch.preempted and batch.admitted:
        _fail("V1 admits nobody in a step that evicts")
    if config.policy == "v0" and batch.admitted and len(served) != len(batch.admitted):
        _fail("V0 without chunks mixes prefill and decode")
    if batch.admitted:
        last = batch.admitted[-1]
        kept = state.blocks.watermark_blocks if len(state.running) > 1 or not is_v1 else 0
        pending = state.blocks.blocks_for(last.num_tokens) - len(last.block_table) if config.reserve_full else 0
        free = state.blocks.num_free + _draft_blocks(scheduler, batch)
        if free < kept + (pending if is_v1 else 0):
            _fail(f"{last} was admitted into {free} free blocks, short of what must stay free")


def _check_nobody_idles(scheduler: Scheduler, batch: Batch) -> None:
    """Who could be served is served, in the policy's order; who could be admitted is admitted."""
    config, state = scheduler.config, scheduler.state
    served = {chunk.sequence for chunk in batch.chunks}
    if config.policy.startswith("v1") and any(sequence not in served for sequence in state.running[: len(served)]):
        _fail("V1 served somebody before an earlier one in its list")
    if batch.preempted:
        return  # blocks were short; who goes without is the policy's matter
    # Drafts get what is left over: without them everybody is served as if there were none.
    left = config.max_num_batched_tokens - batch.num_tokens + batch.num_drafts
    if not config.policy.startswith("v1") and config.enable_prefix_caching and config.policy != "v0":
        left -= left % config.block_size
    idle = [sequence for sequence in state.running if sequence not in served]
    stalled = config.policy == "v0" and bool(batch.admitted)
    if idle and left > 0 and not stalled:
        _fail(f"{idle[0]} got nothing although {left} tokens were left")
    if not len(state.waiting) or left <= 0 or len(state.running) >= config.max_num_seqs:
        return
    head, blocks, spare = state.waiting.head(), state.blocks, _draft_blocks(scheduler, batch)
    if config.policy.startswith("v1"):
        if config.enable_prefix_caching and (config.hash_at == "after_plan" or spare):
            return  # what was found when it was looked up is not what would be found now
        hits = blocks.lookup(head)
        cached = len(hits) * config.block_size
        length = head.num_tokens - cached
        length = min(length, config.long_prefill_token_threshold or length)
        if config.policy == "v1-whole" and length > left:
            return
        need = blocks.blocks_for(head.num_tokens if config.reserve_full else cached + min(length, left)) - len(hits)
        need += sum(hit in blocks._findable for hit in hits)
        fits = need + (blocks.watermark_blocks if state.running else 0) <= blocks.num_free + spare
    else:
        # Without its prefix hits, which could only have made it easier.
        fits = blocks.room(head.num_tokens) is Room.NOW and (config.policy == "v0-chunked" or head.num_tokens <= left)
    if fits:
        _fail(f"{head} waits although it fits")


def _draft_blocks(scheduler: Scheduler, batch: Batch) -> int:
    """Blocks that only drafts have taken."""
    count = scheduler.blocks.blocks_for
    return sum(
        len(chunk.sequence.block_table) - count(chunk.sequence.computed) for chunk in batch.chunks if chunk.drafts
    )
