"""The loop of the engine: schedule, run, commit.  Synchronous, one thread, no server."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from headrace.clock import Clock, MonotonicClock
from headrace.core.batch import Batch, StepResult, TokenEvent
from headrace.core.request import FinishReason, Request
from headrace.core.scheduler import Scheduler
from headrace.engine.config import EngineConfig, scheduler_config
from headrace.engine.outputs import EngineStats, Logprobs, Output, OutputAssembler, TokenLogprob, with_logprobs
from headrace.engine.profiler import Profiler
from headrace.engine.step_log import StepLog
from headrace.errors import InvalidRequest
from headrace.version import VERSION

if TYPE_CHECKING:
    from headrace.engine.tokenizer import Tokenizer

logger = logging.getLogger("headrace.engine")

PromptLogprobs = Mapping[str, tuple[TokenLogprob, ...]]

_RECENT_STEPS = 1024
_P99_EVERY = 32  # sorting the recent steps costs more than a small step should pay each time


class RunnerOutput(Protocol):
    """`logprobs` has one of each new token for each request of the batch that asked, `prompt_logprobs` those of each
    that asked and samples its first token."""

    @property
    def result(self) -> StepResult: ...
    @property
    def logprobs(self) -> Logprobs: ...
    @property
    def prompt_logprobs(self) -> PromptLogprobs: ...


class Runner(Protocol):
    """The model: `model_runner.ModelRunner`, or a script in tests."""

    def run(self, batch: Batch) -> RunnerOutput: ...


@dataclass(frozen=True, slots=True)
class Step:
    """What one step did; seconds are on the engine's monotonic clock.

    admitted   (request id, prompt tokens from the prefix cache) of sequences that entered the running set
    """

    started_s: float
    ended_s: float
    num_tokens: int
    admitted: tuple[tuple[str, int], ...]
    events: tuple[TokenEvent, ...]
    logprobs: Logprobs
    prompt_logprobs: PromptLogprobs


@dataclass(frozen=True, slots=True)
class Turn:
    """The step under way."""

    started_s: float
    num_tokens: int


class Engine:
    """add requests; then `step()` while `has_work`.  Not thread-safe, except `stats()`."""

    def __init__(
        self,
        config: EngineConfig,
        runner: Runner,
        *,
        clock: Clock | None = None,
        step_log: StepLog | None = None,
        profiler: Profiler | None = None,
    ) -> None:
        self.config = config
        self.scheduler = Scheduler(scheduler_config(config))
        self.runner = runner
        self.consecutive_failures = 0
        self.last_failure = ""
        self.slowest_token_s = 0.0
        self.turn: Turn | None = None  # read by other threads: is a step stuck?
        self._clock = clock or MonotonicClock()
        self.profiler = profiler
        self._step_log = step_log
        self._recent: list[float] = [0.0] * _RECENT_STEPS
        self._num_steps = 0
        self._p99_s = 0.0
        self._last_step_end_s: float | None = None
        self._prompt_tokens = self._cached_tokens = self._generated_tokens = 0
        self._stats = self._snapshot()

    @classmethod
    def from_config(cls, config: EngineConfig) -> Engine:
        """Load the model (seconds to minutes).  Raises ConfigError for weights that do not fit the config."""
        from headrace.engine.model_runner import ModelRunner

        step_log = None if config.step_log is None else StepLog(config.step_log, _facts(config))  # before weights load
        profiler = None if config.profiler is None else Profiler(config.profiler)
        runner = ModelRunner(config)
        runner.warm_up()
        return cls(config, runner, step_log=step_log, profiler=profiler)

    def close(self) -> None:
        """Write what the step log and the profiler still hold.  Belongs to the thread of the steps; idempotent."""
        if self._step_log is not None:
            self._step_log.close()
        if self.profiler is not None:
            self.profiler.close()

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    def now_s(self) -> float:
        return self._clock.now_ns() / 1e9

    def add(self, request: Request) -> None:
        """Queue a request.  Raises InvalidRequest when it can never be served."""
        self.scheduler.add(request)

    def abort(
        self, request_id: str, reason: FinishReason = FinishReason.ABORT, stop_reason: int | str | None = None
    ) -> None:
        """End a request in any phase; its blocks are free at once.  Unknown ids are ignored."""
        self.scheduler.abort(request_id, reason, stop_reason)

    def reset_prefix_cache(self) -> None:
        """Forget all cached prefixes.  Raises InvalidRequest, and changes nothing, while KV blocks are in use."""
        scheduler = self.scheduler
        if not scheduler.reset_prefix_cache():
            used = self.config.num_kv_blocks - scheduler.blocks.num_free
            raise InvalidRequest(
                f"The prefix cache was not reset: {used} of {self.config.num_kv_blocks} KV blocks are in use by "
                f"{scheduler.num_running} running sequences; try again when nothing runs.",
                code="cache_in_use",
            )

    def step(self) -> Step:
        """One turn: plan a batch, compute it, take over what came of it."""
        started_s = self.now_s()
        scheduler = self.scheduler
        batch = scheduler.schedule()
        self.turn = Turn(started_s, batch.num_tokens)
        running, waiting, kv_free = scheduler.num_running, scheduler.num_waiting, scheduler.blocks.num_free
        result, logprobs, prompt_logprobs = self._run(batch)
        events = scheduler.commit(batch, result)
        step = self._account(batch, events, logprobs, prompt_logprobs, started_s)
        if self._step_log is not None:
            self._step_log.record(
                batch,
                events,
                started_s,
                step.ended_s,
                running=running,
                waiting=waiting,
                kv_used=self.config.num_kv_blocks - kv_free,
                kv_free=kv_free,
                accepted=sum(result.accepted.values()),
            )
        if self.profiler is not None:
            self.profiler.note_step()
        return step

    def stats(self) -> EngineStats:
        """The snapshot after the latest step; may be read from any thread."""
        return self._stats

    def refresh_stats(self) -> None:
        """Take a new snapshot, after requests came or went without a step."""
        self._stats = self._snapshot()

    def _run(self, batch: Batch) -> tuple[StepResult, Logprobs, PromptLogprobs]:
        """Compute a batch.  A failing model fails the requests of this batch, never the loop."""
        if not batch.chunks:
            return StepResult(()), {}, {}
        try:
            output = self.runner.run(batch)
        except Exception as error:
            self.consecutive_failures += 1
            self.last_failure = f"{type(error).__name__}: {error}"
            logger.exception("step %d failed; its %d requests end with an error", batch.step, len(batch.chunks))
            reason = f"the model failed in step {batch.step} ({self.last_failure})"
            failed = {chunk.sequence.request_id: reason for chunk in batch.chunks}
            return StepResult((0,) * sum(chunk.samples for chunk in batch.chunks), failed), {}, {}
        self.consecutive_failures = 0
        return output.result, output.logprobs, output.prompt_logprobs

    def _account(
        self,
        batch: Batch,
        events: tuple[TokenEvent, ...],
        logprobs: Logprobs,
        prompt_logprobs: PromptLogprobs,
        started_s: float,
    ) -> Step:
        ended_s = self.now_s()
        num_tokens, seconds = batch.num_tokens, ended_s - started_s
        if num_tokens:
            self._recent[self._num_steps % _RECENT_STEPS] = seconds
            self._num_steps += 1
            self.slowest_token_s = max(self.slowest_token_s, seconds / num_tokens)
            if self._num_steps < _P99_EVERY or self._num_steps % _P99_EVERY == 0:
                known = sorted(self._recent[: min(self._num_steps, _RECENT_STEPS)])
                self._p99_s = known[min(len(known) - 1, int(0.99 * len(known)))]
        self._last_step_end_s = ended_s
        for chunk in batch.chunks:
            if chunk.samples and chunk.sequence.num_output_tokens == 1:
                self._prompt_tokens += chunk.sequence.num_prompt_tokens
                self._cached_tokens += chunk.sequence.num_cached_tokens
        self._generated_tokens += sum(event.token_id is not None for event in events)
        self._stats = self._snapshot()
        self.turn = None
        return Step(
            started_s=started_s,
            ended_s=ended_s,
            num_tokens=num_tokens,
            admitted=tuple((each.request_id, each.num_cached_tokens) for each in batch.admitted),
            events=events,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
        )

    def _snapshot(self) -> EngineStats:
        scheduler = self.scheduler
        return EngineStats(
            num_running=scheduler.num_running,
            num_waiting=scheduler.num_waiting,
            kv_blocks_total=self.config.num_kv_blocks,
            kv_blocks_free=scheduler.blocks.num_free,
            num_steps=self._num_steps,
            last_step_end_s=self._last_step_end_s,
            step_seconds_p99=self._p99_s,
            prompt_tokens=self._prompt_tokens,
            prompt_tokens_cached=self._cached_tokens,
            generation_tokens=self._generated_tokens,
            num_preemptions=scheduler.counters.preemptions,
            prefix_cache_queries=scheduler.counters.prefix_queries,
            prefix_cache_hits=scheduler.counters.prefix_hits,
            num_drafts=scheduler.counters.drafts,
            num_draft_tokens=scheduler.counters.draft_tokens,
            num_accepted_tokens=scheduler.counters.accepted_tokens,
            accepted_at=tuple(scheduler.counters.accepted_at),
        )


def _facts(config: EngineConfig) -> dict[str, object]:
    """What a reader of the step log needs to know of the engine that wrote it."""
    return {
        "headrace": VERSION,
        "model": config.model,
        "policy": config.policy,
        "max_num_batched_tokens": config.max_num_batched_tokens,
        "max_num_seqs": config.max_num_seqs,
        "max_model_len": config.max_model_len,
        "block_size": config.block_size,
        "num_kv_blocks": config.num_kv_blocks,
        "num_speculative_tokens": config.speculation.num_speculative_tokens if config.speculation else 0,
    }


def generate(
    engine: Engine,
    tokenizer: Tokenizer,
    requests: Sequence[Request],
    on_output: Callable[[Output], None] = lambda output: None,
) -> list[Output]:
    """Run requests to their ends without a server: one Output each, with the whole text, in the order given.

    `on_output` is told every piece as it comes.  Raises InvalidRequest before anything runs when one can never be
    served; whatever else is raised meanwhile (an interrupt), nothing is left running.
    """
    assemblers: dict[str, OutputAssembler] = {}
    parts: dict[str, list[Output]] = {}
    try:
        for request in requests:
            detokenizer = tokenizer.detokenizer(request.params, request.prompt_token_ids)
            engine.add(request)
            assemblers[request.request_id] = OutputAssembler(request, detokenizer)
            parts[request.request_id] = []
        _run_to_the_end(engine, assemblers, parts, on_output)
    finally:
        for request_id in assemblers:
            engine.abort(request_id)
    return [_join(parts[request.request_id]) for request in requests]


def _run_to_the_end(
    engine: Engine,
    assemblers: dict[str, OutputAssembler],
    parts: dict[str, list[Output]],
    on_output: Callable[[Output], None],
) -> None:
    while assemblers:
        step = engine.step()
        for request_id, num_cached in step.admitted:
            if request_id in assemblers:
                assemblers[request_id].num_cached_tokens = num_cached
        for event, logprob in with_logprobs(step.events, step.logprobs):
            assembler = assemblers.get(event.request_id)
            if assembler is None:
                continue
            output = assembler.push(event, logprob, step.prompt_logprobs.get(event.request_id))
            if output is None:
                continue
            parts[event.request_id].append(output)
            on_output(output)
            if output.finish_reason is not None:
                if assembler.stopped_early:
                    engine.abort(event.request_id, FinishReason.STOP, output.stop_reason)
                del assemblers[event.request_id]


def _join(parts: Sequence[Output]) -> Output:
    last = parts[-1]
    return Output(
        request_id=last.request_id,
        text="".join(part.text for part in parts),
        token_ids=tuple(token for part in parts for token in part.token_ids),
        num_prompt_tokens=last.num_prompt_tokens,
        num_cached_tokens=last.num_cached_tokens,
        num_output_tokens=last.num_output_tokens,
        logprobs=None if last.logprobs is None else tuple(one for part in parts for one in part.logprobs or ()),
        prompt_logprobs=parts[0].prompt_logprobs,
        finish_reason=last.finish_reason,
        stop_reason=last.stop_reason,
        error=last.error,
    )
