"""The four published scheduling policies: vLLM's V1 and V0, each with and without chunked prefill.

A policy plans one step: it reads and writes the scheduler's state and adds chunks to the step under
construction.  `computed` advances here, not when the step's result arrives.  "Chunked prefill off" names two different
policies: V0 (`v0`) runs batches of pure prefill that stall every decode; V1 (`v1-whole`) serves decodes first and lets
a prompt wait until it fits whole into what is left of the budget.
"""

from __future__ import annotations

from collections.abc import Callable

from headrace.core.batch import Chunk
from headrace.core.blocks import Room
from headrace.core.queues import rank
from headrace.core.sequence import Phase, Sequence
from headrace.core.state import NextStep, State


def plan_v1(state: State, step: NextStep) -> None:
    """Decodes and chunks in list order, then admission; chunked prefill on."""
    _continue_v1(state, step)
    if not step.preempted:
        _admit_v1(state, step, whole=False)


def plan_v1_whole(state: State, step: NextStep) -> None:
    """As `plan_v1`, but a prompt enters only when all of it fits into the rest of the budget."""
    _continue_v1(state, step)
    if not step.preempted:
        _admit_v1(state, step, whole=True)


def plan_v0(state: State, step: NextStep) -> None:
    """Prefill first: while any prompt can be admitted whole, every decode stalls; the two never mix."""
    config = state.config
    # Running sequences cost seats here, not tokens.
    _admit_v0(state, step, seats=config.max_num_seqs - len(state.running), chunking=False)
    if step.chunks:
        return
    if not state.is_fcfs:
        _make_way(state, step)
    decodes, _, left_over, evicted = _serve_v0(state, step, chunking=False)
    state.running = left_over + _sequences(decodes)
    _give_back(state, evicted)


def plan_v0_chunked(state: State, step: NextStep) -> None:
    """What runs first, in queue order, then prompts in chunks; unserved sequences keep the front of the queue."""
    decodes, chunks, left_over, evicted = _serve_v0(state, step, chunking=True)
    # Chunks that end their prompt now stand before the others, because they decode in the next step.
    ordered = [chunk for chunk in chunks if chunk.samples] + [chunk for chunk in chunks if not chunk.samples]
    state.running = left_over + _sequences(decodes) + _sequences(ordered)
    step.chunks = []
    _admit_v0(state, step, seats=state.config.max_num_seqs - len(decodes) - len(chunks), chunking=True)
    step.chunks += chunks + decodes
    # An eviction does not block admission here, unlike in V1: who was evicted enters `waiting` afterwards.
    _give_back(state, evicted)


make_chunk = tuple.__new__  # skips the named tuple's own __new__, which takes twice as long

POLICIES: dict[str, Callable[[State, NextStep], None]] = {
    "v1": plan_v1,
    "v1-whole": plan_v1_whole,
    "v0": plan_v0,
    "v0-chunked": plan_v0_chunked,
}


def _continue_v1(state: State, step: NextStep) -> None:
    """Serve `running` in list order; when blocks run out, evict from the end (or the worst rank) and serve on."""
    running, blocks = state.running, state.blocks
    threshold, block_size = state.config.long_prefill_token_threshold, state.config.block_size
    publish = state.publish_at_plan
    index = 0
    # The inner loop is the hot path of engine and simulator: a step that only decodes passes here once per
    # sequence, so it makes no call but for a new block.  It restarts after every eviction.
    while True:
        left, serve = step.left, step.chunks.append
        for index in range(index, len(running)):  # noqa: B020 - resumes where the eviction left it
            if left <= 0:
                break
            sequence = running[index]
            start = sequence.computed
            # No bound by max_model_len: a sequence ends when it reaches it, so its gap stays below.
            length = gap = sequence.num_tokens - start
            if gap > 1:
                if 0 < threshold < length:
                    length = threshold
                if length > left:
                    length = left
            end = start + length
            if end > len(sequence.block_table) * block_size and not blocks.grow(sequence, end):
                step.left = left
                break
            if publish and end % block_size < length:
                blocks.publish(sequence, end)
            sequence.computed = end
            left -= length
            serve(make_chunk(Chunk, (sequence, start, length, length == gap, ())))
        else:
            step.left = left
            return
        if left <= 0:
            step.left = left
            return
        index = _evict_for(state, step, index, length)
        if index < 0:
            return


def _evict_for(state: State, step: NextStep, index: int, length: int) -> int:
    """Evict until running[index] can take `length` tokens, and serve it; return the next index, or -1."""
    running, blocks = state.running, state.blocks
    sequence = running[index]
    while not blocks.grow(sequence, sequence.computed + length):
        place = len(running) - 1
        if not state.is_fcfs:
            place = running.index(max(running, key=rank))
        victim = running.pop(place)
        if place < index:
            # Only by priority: it may have been served already in this step.
            index -= 1
            chunk = step.withdraw(victim)
            if chunk is not None:
                # Its blocks may be findable already, but nobody is going to fill them.
                blocks.retract(victim, chunk.start)
        step.preempted.append(state.evict(victim))
        state.waiting.give_back(victim)
        if victim is sequence:
            # It evicted itself: nothing behind it is left to free.
            return -1
    state.serve(step, sequence, length)
    return index + 1


def _admit_v1(state: State, step: NextStep, *, whole: bool) -> None:
    """Admit from the head of `waiting`, never looking past it."""
    config, waiting, running, blocks = state.config, state.waiting, state.running, state.blocks
    threshold = config.long_prefill_token_threshold
    while step.left > 0 and len(running) < config.max_num_seqs and len(waiting):
        sequence = waiting.head()
        reuse = blocks.lookup(sequence)
        cached = len(reuse) * config.block_size
        # A preempted sequence computes its own output again, so this is not the prompt's length.
        length = sequence.num_tokens - cached
        if 0 < threshold < length:
            length = threshold
        if length > step.left:
            if whole:
                return
            length = step.left
        fits = blocks.grow(
            sequence,
            cached + length,
            reuse=reuse,
            whole=sequence.num_tokens if config.reserve_full else 0,
            # Not when nothing runs: a prompt of the whole pool must be able to start.
            keep=blocks.watermark_blocks if running else 0,
        )
        if not fits:
            return
        state.admit(step, cached)
        state.serve(step, sequence, length)


def _admit_v0(state: State, step: NextStep, *, seats: int, chunking: bool) -> None:
    """Admit from the head of `waiting`: all blocks of the prompt at once, even when only a chunk of it runs."""
    config, waiting, blocks = state.config, state.waiting, state.blocks
    rounding = config.block_size if config.enable_prefix_caching else 1
    limit = config.max_model_len
    if not chunking:
        limit = min(limit, config.max_num_batched_tokens)
    while len(waiting):
        sequence = waiting.head()
        reuse = blocks.lookup(sequence, whole=True)
        # When all of it is cached, the last token is computed again, for its logits.
        cached = min(len(reuse) * config.block_size, sequence.num_tokens - 1)
        length = sequence.num_tokens - cached
        if chunking:
            length = min(length, step.left - step.left % rounding)
        if cached + length > limit:
            state.drop(step)
            continue
        room = blocks.room(sequence.num_tokens)
        if room is Room.NEVER:
            state.drop(step)
            continue
        if room is Room.LATER or not 0 < length <= step.left or seats < 1:
            return
        blocks.grow(sequence, sequence.num_tokens, reuse=reuse)
        state.admit(step, cached)
        state.serve(step, sequence, length)
        seats -= 1


def _serve_v0(
    state: State, step: NextStep, *, chunking: bool
) -> tuple[list[Chunk], list[Chunk], list[Sequence], list[Sequence]]:
    """Serve `running` from the front, evicting from the back; the caller puts `running` together again.

    Returns decodes, chunks of prompts, sequences that were not served, and evicted ones (newest first).
    """
    queue, blocks, block_size = state.running, state.blocks, state.config.block_size
    # V0 chunks along block boundaries when prefix caching is on; that rounds the budget of decodes as well.
    rounding = block_size if state.config.enable_prefix_caching else 1
    decodes: list[Chunk] = []
    chunks: list[Chunk] = []
    evicted: list[Sequence] = []
    first, end = 0, len(queue)
    while first < end:
        sequence = queue[first]
        length = sequence.num_tokens - sequence.computed
        if chunking:
            left = step.left - step.left % rounding
            if length > left:
                length = left
            if length == 0:
                break
        first += 1
        is_prefill = sequence.computed < sequence.prefill_length
        # The worst case, as V0 has it: one free block, even when the last block still has a place.
        while blocks.num_free == 0:
            if end > first:
                end -= 1
                victim = queue[end]
            elif is_prefill and first == 1:
                # Alone, and all its blocks are there since its admission: evicting it would repeat for ever.
                # V0's own 1 % watermark hides this; pools of less than 100 blocks have none.
                break
            else:
                victim = sequence
            evicted.append(state.evict(victim))
            if victim is sequence:
                break
        if sequence.phase is Phase.RUNNING:
            if sequence.computed + length > len(sequence.block_table) * block_size:
                blocks.grow(sequence, sequence.computed + length)
            (chunks if is_prefill else decodes).append(state.serve(step, sequence, length))
    step.preempted += evicted
    return decodes, chunks, queue[first:end], evicted


def _make_way(state: State, step: NextStep) -> None:
    """Priority in V0: evict running sequences that rank below the best waiting one, until that one fits."""
    running, waiting = state.running, state.waiting
    running.sort(key=rank)
    if not len(waiting):
        return
    head = waiting.head()
    while running and rank(running[-1]) > rank(head):
        if state.blocks.room(head.num_tokens) is Room.NOW and len(running) < state.config.max_num_seqs:
            break
        victim = running.pop()
        step.preempted.append(state.evict(victim))
        state.waiting.give_back(victim)


def _give_back(state: State, evicted: list[Sequence]) -> None:
    """Evicted sequences are newest first; given back one by one, the oldest ends up in front."""
    for sequence in evicted:
        state.waiting.give_back(sequence)


def _sequences(chunks: list[Chunk]) -> list[Sequence]:
    return [chunk.sequence for chunk in chunks]
