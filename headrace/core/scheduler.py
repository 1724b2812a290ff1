"""Which sequences compute which tokens in the next step, and what follows from the tokens that come back."""

from __future__ import annotations

from collections.abc import Iterable

from headrace.core.batch import Batch, Chunk, StepResult, TokenEvent
from headrace.core.blocks import BlockManager
from headrace.core.policy import POLICIES
from headrace.core.request import FinishReason, Request
from headrace.core.sequence import Phase, Sequence
from headrace.core.speculation import Speculation, add_drafts
from headrace.core.state import Counters, NextStep, SchedulerConfig, State
from headrace.errors import InvalidRequest, InvariantError

__all__ = ["Counters", "Scheduler", "SchedulerConfig", "Speculation"]

REPETITION_DETECTED = "repetition_detected"  # vLLM's stop_reason

make_event = tuple.__new__  # one per token: skips the named tuple's own __new__, which takes twice as long


class Scheduler:
    """add requests; then, while `has_work`: `batch = schedule()`, compute it, `commit(batch, result)`.

    Pure: no clock, no randomness, no I/O; the same calls give the same batches.  Not thread-safe.  One batch is in
    flight at a time; requests may be added and aborted meanwhile.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.state = State(config)
        self.num_steps = 0
        self._plan = POLICIES[config.policy]
        self.live: dict[str, Sequence] = {}
        self._added = 0
        self.in_flight: Batch | None = None
        # Aborted while their chunk may be computing: the blocks stay theirs until the batch is committed.
        self.retiring: list[Sequence] = []
        self._idle_steps = 0

    def add(self, request: Request) -> Sequence:
        """Queue a request.  Raises InvalidRequest when it can never be served or its id is in use."""
        config = self.config
        prompt, params = len(request.prompt_token_ids), request.params
        if request.request_id in self.live:
            raise InvalidRequest(f"request id {request.request_id!r} is already in use", param="request_id")
        if prompt == 0:
            raise InvalidRequest("the prompt is empty; at least 1 token is needed", param="prompt")
        if prompt >= config.max_model_len:
            raise InvalidRequest(
                f"the prompt has {prompt} tokens, but the model's maximum context length is {config.max_model_len}"
                f" tokens, prompt and output together; use at most {config.max_model_len - 1}",
                param="prompt",
                code="context_length_exceeded",
            )
        if params.max_tokens < 1:
            raise InvalidRequest(f"max_tokens is {params.max_tokens}; it must be at least 1", param="max_tokens")
        if not 0 <= params.min_tokens <= params.max_tokens:
            raise InvalidRequest(
                f"min_tokens is {params.min_tokens}; it must be between 0 and max_tokens ({params.max_tokens})",
                param="min_tokens",
            )
        sequence = Sequence(request, max_model_len=config.max_model_len, order=self._added)
        need = self.state.blocks.blocks_for(sequence.length_limit)
        if need > config.num_blocks:
            # Accepting it would let it grow until it evicts everybody and then itself, for ever.
            raise InvalidRequest(
                f"{prompt} prompt tokens and up to {sequence.length_limit - prompt} output tokens need {need} KV blocks"
                f" of {config.block_size} tokens, but there are {config.num_blocks}; lower max_tokens or the prompt",
                param="max_tokens",
                code="context_length_exceeded",
            )
        self._added += 1
        self.live[request.request_id] = sequence
        self.state.waiting.add(sequence)
        return sequence

    def abort(
        self, request_id: str, reason: FinishReason = FinishReason.ABORT, stop_reason: int | str | None = None
    ) -> bool:
        """End a request in any phase; False when it is unknown or has ended.

        No event follows.  A sequence whose chunk is in flight keeps its blocks until `commit`, which ignores its
        result.
        """
        sequence = self.live.get(request_id)
        if sequence is None or sequence.phase is Phase.FINISHED:
            return False
        was_running = sequence.phase is Phase.RUNNING
        self._end(sequence, reason, stop_reason)
        if not was_running:
            self.state.waiting.remove(sequence)
            return True
        self.state.running.remove(sequence)
        if self.in_flight is None:
            self.state.blocks.free(sequence)
        else:
            self.retiring.append(sequence)
        return True

    def schedule(self) -> Batch:
        """Plan the next step.  The batch must be committed before the next call."""
        if self.in_flight is not None:
            raise InvariantError(f"step {self.in_flight.step} has not been committed")
        state, config = self.state, self.config
        had_work = self.has_work
        step = NextStep(left=config.max_num_batched_tokens)
        self._plan(state, step)
        if config.enable_prefix_caching and config.hash_at == "after_plan":
            self._publish(step)
        if config.speculation is not None and step.left > 0:
            add_drafts(state, step)
        # A step may evict without computing (V0: the last one evicts itself), but then the next one must admit.
        self._idle_steps = self._idle_steps + 1 if had_work and not step.chunks and not step.dropped else 0
        if self._idle_steps > (1 if step.preempted else 0):
            raise InvariantError(
                f"no progress: {len(state.running)} running and {len(state.waiting)} waiting sequences,"
                f" {state.blocks.num_free} of {config.num_blocks} blocks free, and nothing can be scheduled"
            )
        self.num_steps += 1
        batch = Batch(
            self.num_steps,
            tuple(step.chunks),
            tuple(step.admitted),
            tuple(step.preempted),
            tuple(step.dropped),
        )
        self.in_flight = batch
        return batch

    def commit(self, batch: Batch, result: StepResult) -> tuple[TokenEvent, ...]:
        """Append the sampled tokens, apply the stop rules, free what has ended.

        Of drafts, those that were right are appended before the sampled token; the blocks of the others are given back.
        Rows in `result.failed` end with FinishReason.ERROR.  Whatever a failed row wrote is not found again, and
        sequences that already share a block it wrote in this step start over: their result is discarded.
        Events come in this order: dropped, failed, then tokens in the batch's order.
        """
        if batch is not self.in_flight:
            raise InvariantError(f"step {batch.step} is not the one in flight")
        sampled = [chunk[0] for chunk in batch.chunks if chunk[3]]
        if len(result.tokens) != len(sampled):
            raise InvariantError(
                f"step {batch.step} samples {len(sampled)} tokens, its result has {len(result.tokens)}"
            )
        self.in_flight = None
        events: list[TokenEvent] = []
        for sequence in batch.dropped:
            del self.live[sequence.request_id]
            events.append(TokenEvent(sequence.request_id, None, FinishReason.LENGTH))
        ended: list[Sequence] = self._fail(batch, result, events) if result.failed else []
        if self.config.enable_prefix_caching and self.config.hash_at == "after_step":
            self._publish(batch)
        pairs: Iterable[tuple[Sequence, int]] = zip(sampled, result.tokens, strict=True)
        drafted: list[tuple[Chunk, int]] = []
        if self.config.speculation is not None:
            pairs, drafted = self._verified(batch, result)
        running, emit = Phase.RUNNING, events.append
        for sequence, token in pairs:
            if sequence.phase is not running:
                continue  # aborted meanwhile, failed, starting over, or ended by a draft before this token
            sequence.output_token_ids.append(token)
            sequence.num_tokens = length = sequence.num_tokens + 1
            # Stop rules in vLLM V1's present order: min_tokens, end token, stop ids, length, repetition.
            if token in sequence.end_ids and length >= sequence.min_length:
                params = sequence.request.params
                is_eos = not params.ignore_eos and token in sequence.request.eos_token_ids
                self._end(sequence, FinishReason.STOP, None if is_eos else token)
            elif length >= sequence.length_limit:
                self._end(sequence, FinishReason.LENGTH, None)
            elif (
                (rule := sequence.repetition)
                and length >= sequence.min_length
                and rule.repeats(sequence.output_token_ids)
            ):
                self._end(sequence, FinishReason.REPETITION, REPETITION_DETECTED)
            else:
                emit(make_event(TokenEvent, (sequence.request_id, token, None, None, None)))
                continue
            ended.append(sequence)
            events.append(TokenEvent(sequence.request_id, token, sequence.finish_reason, sequence.stop_reason))
        for chunk, accepted in drafted:
            self._settle(chunk, accepted)
        if ended or self.retiring or result.failed:
            for sequence in ended:
                self.state.blocks.free(sequence)
            for sequence in self.retiring:
                self.state.blocks.free(sequence)
            self.retiring.clear()
            # One pass for all of them: removing each from a list would be quadratic in a burst of endings.
            self.state.running = [sequence for sequence in self.state.running if sequence.phase is running]
        return tuple(events)

    @property
    def has_work(self) -> bool:
        return bool(self.state.running) or len(self.state.waiting) > 0

    @property
    def num_running(self) -> int:
        return len(self.state.running)

    @property
    def num_waiting(self) -> int:
        return len(self.state.waiting)

    @property
    def blocks(self) -> BlockManager:
        return self.state.blocks

    @property
    def counters(self) -> Counters:
        return self.state.counters

    def get(self, request_id: str) -> Sequence | None:
        """The live sequence of a request, or None."""
        return self.live.get(request_id)

    def reset_prefix_cache(self) -> bool:
        """Forget all cached prefixes; refused (False, nothing changes) while any block is in use."""
        return self.state.blocks.reset_prefix_cache()

    def _publish(self, step: NextStep | Batch) -> None:
        size = self.config.block_size
        for sequence, start, length, _, drafts in step.chunks:
            end = start + length - len(drafts)
            if end % size < length and sequence.block_table and sequence.phase is Phase.RUNNING:
                self.state.blocks.publish(sequence, end)

    def _verified(self, batch: Batch, result: StepResult) -> tuple[list[tuple[Sequence, int]], list[tuple[Chunk, int]]]:
        """New tokens with their sequences, right drafts included; and chunks with drafts, with how many were right."""
        counters = self.state.counters
        pairs: list[tuple[Sequence, int]] = []
        drafted: list[tuple[Chunk, int]] = []
        tokens = iter(result.tokens)
        for chunk in batch.chunks:
            sequence, drafts = chunk.sequence, chunk.drafts
            if drafts and sequence.phase is Phase.RUNNING:
                accepted = result.accepted.get(sequence.request_id, 0)
                if not 0 <= accepted <= len(drafts):
                    raise InvariantError(
                        f"step {batch.step} accepts {accepted} of the {len(drafts)} drafts of {sequence.request_id}"
                    )
                pairs += [(sequence, draft) for draft in drafts[:accepted]]
                drafted.append((chunk, accepted))
                counters.drafts += 1
                counters.draft_tokens += len(drafts)
                counters.accepted_tokens += accepted
                for place in range(accepted):
                    counters.accepted_at[place] += 1
            if chunk.samples:
                pairs.append((sequence, next(tokens)))
        return pairs, drafted

    def _settle(self, chunk: Chunk, accepted: int) -> None:
        """Count what drafts have computed; only now may their blocks be found, and those of wrong ones go back."""
        sequence, blocks = chunk.sequence, self.state.blocks
        # An end token among the drafts ends the sequence before the drafts behind it.
        computed = sequence.computed = min(chunk.start + 1 + accepted, sequence.num_tokens)
        if self.config.enable_prefix_caching and accepted:
            blocks.publish(sequence, computed)
        blocks.shrink(sequence, computed)

    def _fail(self, batch: Batch, result: StepResult, events: list[TokenEvent]) -> list[Sequence]:
        """End the failed rows; send back to `waiting` who shares what they wrote.  Returns the ended ones."""
        state, size = self.state, self.config.block_size
        failed = [chunk for chunk in batch.chunks if chunk.sequence.request_id in result.failed]
        unknown = result.failed.keys() - {chunk.sequence.request_id for chunk in failed}
        if unknown:
            raise InvariantError(f"step {batch.step} reports failures of {sorted(unknown)}, which it did not compute")
        state.counters.failed += len(failed)
        ended: list[Sequence] = []
        ruined: set[int] = set()
        for sequence, start, length, *_ in failed:
            ruined.update(sequence.block_table[start // size : (start + length - 1) // size + 1])
            # The whole table: bad values may have come from earlier blocks as well.
            state.blocks.retract(sequence)
            if sequence.phase is Phase.RUNNING:
                reason = result.failed[sequence.request_id]
                self._end(sequence, FinishReason.ERROR, None)
                events.append(TokenEvent(sequence.request_id, None, FinishReason.ERROR, error=reason))
                ended.append(sequence)
        # Only sequences that were admitted in this very step can share such a block (same-step hits), and with
        # V0 those whose prompt is a full hit.
        for sequence in reversed(state.running):
            if sequence.phase is Phase.RUNNING and not ruined.isdisjoint(sequence.block_table):
                first = min(i for i, block in enumerate(sequence.block_table) if block in ruined)
                state.blocks.retract(sequence, first * size)
                state.begin_again(sequence)
                state.counters.restarts += 1
                state.waiting.give_back(sequence)
        return ended

    def _end(self, sequence: Sequence, reason: FinishReason, stop_reason: int | str | None) -> None:
        sequence.phase = Phase.FINISHED
        sequence.finish_reason = reason
        sequence.stop_reason = stop_reason
        del self.live[sequence.request_id]
