"""Submit, stream, abort: the engine as the server sees it.

Two threads.  The step loop has its own and touches nothing but the scheduler and the model; everything with text and
streams happens on the event loop's thread.  Between them, one inbox and one call a step:

    submit, abort  --inbox-->  step thread: add, abort, schedule, run, commit
    streams        <--call_soon_threadsafe(_deliver)--  one Delivery a step
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from headrace.core.batch import TokenEvent
from headrace.core.request import FinishReason, Request
from headrace.engine.config import EngineConfig
from headrace.engine.engine import Engine as StepEngine
from headrace.engine.engine import PromptLogprobs
from headrace.engine.outputs import (
    EngineStats,
    FinishedRequest,
    Logprobs,
    Observer,
    Output,
    OutputAssembler,
    TokenLogprob,
    with_logprobs,
)
from headrace.engine.profiler import Profiler
from headrace.errors import HeadraceError, InvalidRequest
from headrace.sizing.context import context_limit_message

if TYPE_CHECKING:
    from headrace.engine.tokenizer import Tokenizer

__all__ = [
    "AsyncEngine",
    "Engine",
    "EngineStats",
    "FinishedRequest",
    "Observer",
    "Output",
    "TokenLogprob",
]

logger = logging.getLogger("headrace.engine")

MAX_CONSECUTIVE_FAILURES = 3
# A step is stuck when it takes longer than all of these: a minute, many usual steps, and its tokens at several times
# the slowest pace seen (a first long prompt after short decodes is slow, not stuck).  Before the first step nothing is
# known of this machine.
STUCK_AT_LEAST_S = 60.0
STUCK_BEFORE_FIRST_STEP_S = 600.0
P99_FACTOR = 20.0
SLOWEST_FACTOR = 5.0


class Engine(Protocol):
    """What the server needs of an engine; `AsyncEngine` is the real one, tests have scripted ones."""

    config: EngineConfig

    def submit(self, request: Request) -> AsyncIterator[Output]:
        """Queue a request and return its stream.

        Raises InvalidRequest at once when it can never be served.  Closing the iterator early (or cancelling the
        task that reads it) aborts the request and frees its blocks.
        """
        ...

    def abort(self, request_id: str) -> None:
        """End a request in any phase.  Idempotent; unknown ids are ignored."""
        ...

    def stats(self) -> EngineStats: ...

    def is_healthy(self) -> tuple[bool, str]:
        """(progress is being made or nothing is to be done, why not)."""
        ...

    async def drain(self, timeout_s: float) -> None:
        """Wait until nothing runs or `timeout_s` is over, then abort the rest (each stream gets its end)."""
        ...

    async def start_profile(self) -> dict[str, Any]:
        """Record the steps from here on.  Raises InvalidRequest, code "profiler_off" or "profiler_state"."""
        ...

    async def stop_profile(self) -> dict[str, Any]:
        """End the recording and wait until its trace is written.  Raises as `start_profile` does."""
        ...

    async def reset_prefix_cache(self) -> None:
        """Forget all cached prefixes.  Raises InvalidRequest, code "cache_in_use", while KV blocks are in use."""
        ...

    @property
    def num_queued_tokens(self) -> int:
        """Prompt tokens of the requests that wait for their first step."""
        ...


@dataclass(frozen=True, slots=True)
class _Abort:
    request_id: str
    reason: FinishReason
    stop_reason: int | str | None


@dataclass(frozen=True, slots=True)
class _Call:
    """Work for the step thread between two steps; it (or its caller, should it raise) settles once, in any thread."""

    work: Callable[[Callable[[object], None]], None]
    settle: Callable[[object], None]


@dataclass(frozen=True, slots=True)
class _Delivery:
    """What the step thread tells the event loop after one turn.

    seen      commands taken from the inbox so far: an event concerns only requests that were submitted before
    refused   requests that the scheduler would not take, with its reason
    """

    seen: int
    num_tokens: int
    ended_s: float
    admitted: tuple[tuple[str, int], ...]
    events: tuple[TokenEvent, ...]
    logprobs: Logprobs
    prompt_logprobs: PromptLogprobs
    started_s: float
    refused: tuple[tuple[str, Exception], ...]


class _Stream:
    """One request's outputs and times; owned by the event loop's thread."""

    def __init__(self, request: Request, assembler: OutputAssembler, arrived_s: float) -> None:
        self.request = request
        self.assembler = assembler
        self.command = 0  # position of its submission in the inbox
        self.ready: deque[Output | Exception] = deque()
        self.waiter: asyncio.Future[None] | None = None
        self.arrived_s = arrived_s
        self.first_scheduled_s: float | None = None
        self.first_token_s: float | None = None
        self.last_token_s: float | None = None

    def put(self, item: Output | Exception) -> None:
        self.ready.append(item)
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


class _Reader:
    """The iterator that the caller holds; ends after the last output.

    A class and not a generator: a generator that was never started runs no `finally`, and its request would go on.
    """

    def __init__(self, engine: AsyncEngine, stream: _Stream) -> None:
        self._engine = engine
        self._stream = stream
        self._ended = False

    def __aiter__(self) -> _Reader:
        return self

    async def __anext__(self) -> Output:
        stream = self._stream
        while not stream.ready:
            if self._ended:
                raise StopAsyncIteration
            stream.waiter = asyncio.get_running_loop().create_future()
            try:
                await stream.waiter
            except BaseException:  # the reader was cancelled: nobody waits for the rest
                await self.aclose()
                raise
            finally:
                stream.waiter = None
        item = stream.ready.popleft()
        if isinstance(item, Exception):
            self._ended = True
            raise item
        self._ended = item.finish_reason is not None
        return item

    async def aclose(self) -> None:
        """Stop reading.  Aborts the request unless it has ended."""
        if not self._ended:
            self._ended = True
            self._stream.ready.clear()
            self._engine._leave(self._stream)

    def __del__(self) -> None:
        if not self._ended:
            self._engine._post(self._engine._leave, self._stream)  # the collector may run in any thread


class AsyncEngine:
    """Serves many requests from one step loop.  All methods belong to the event loop's thread.

    The thread of the step loop starts here and sleeps while nothing is to be done.  `close()` ends it.
    """

    def __init__(
        self,
        engine: StepEngine,
        tokenizer: Tokenizer,
        *,
        sampling_defaults: Mapping[str, Any] | None = None,
    ) -> None:
        self.config = engine.config
        self.tokenizer = tokenizer
        self.sampling_defaults: Mapping[str, Any] = dict(sampling_defaults or {})
        self._engine = engine
        self._observer: Observer | None = None
        self._streams: dict[str, _Stream] = {}
        self._num_queued = self._num_queued_tokens = 0  # submitted and never scheduled yet: requests, their prompts
        self._calls: set[asyncio.Future[Any]] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._loop: asyncio.AbstractEventLoop | None = None
        # Shared between the threads, guarded by the condition:
        self._wake = threading.Condition()
        self._inbox: list[Request | _Abort | _Call] = []
        self._num_sent = 0
        self._closing = False
        # Written by the step thread, read by anyone; single assignments, so no lock is needed.
        self._dead: str | None = None
        self._thread = threading.Thread(target=self._run, name="steps", daemon=True)
        self._thread.start()

    @classmethod
    def from_config(cls, config: EngineConfig) -> AsyncEngine:
        """Load tokenizer and model.  Raises ConfigError.  May run in any thread."""
        import gc

        from headrace.engine.models.shape import read_model_shape
        from headrace.engine.tokenizer import Tokenizer, sampling_defaults

        assert config.model_path is not None
        tokenizer = Tokenizer.from_config(config, vocab_size=read_model_shape(config.model_path).vocab_size)
        engine = StepEngine.from_config(config)
        # The model's objects live as long as the process: a collector that walks them only makes steps longer.
        gc.collect()
        gc.freeze()
        return cls(engine, tokenizer, sampling_defaults=sampling_defaults(config.model_path, config.generation_config))

    def memory_bytes(self) -> dict[str, int]:
        """Bytes that the model holds, by what they are for; empty for a runner that does not tell."""
        tell = getattr(self._engine.runner, "memory_bytes", None)
        return {} if tell is None else dict(tell())

    @property
    def step_weight_bytes(self) -> int:
        """Bytes of weights that a step reads if it uses all experts; 0 for a runner that does not tell."""
        return int(getattr(self._engine.runner, "step_weight_bytes", 0))

    def set_observer(self, observer: Observer) -> None:
        """Who is told about steps, tokens and ends from now on."""
        self._observer = observer

    # -- the event loop's side ------------------------------------------------------------------------------------

    def submit(self, request: Request) -> AsyncIterator[Output]:
        """Queue a request and return its stream.  Raises InvalidRequest at once when it can never be served.

        Closing the iterator, cancelling the task that waits on it, or dropping it aborts the request.
        """
        self._refuse(request)
        if self._dead is not None or self._closing:
            raise HeadraceError(f"the engine has stopped: {self._dead or 'it was closed'}")
        detokenizer = self.tokenizer.detokenizer(request.params, request.prompt_token_ids)
        stream = _Stream(request, OutputAssembler(request, detokenizer), self._engine.now_s())
        self._loop = asyncio.get_running_loop()
        self._streams[request.request_id] = stream
        self._count_queued(stream, 1)
        self._idle.clear()
        stream.command = self._send(request)
        return _Reader(self, stream)

    def abort(self, request_id: str) -> None:
        """End a request in any phase; its stream gets a last output.  Idempotent; unknown ids are ignored."""
        stream = self._streams.get(request_id)
        if stream is not None:
            self._finish(stream, stream.assembler.end(FinishReason.ABORT))
            self._send(_Abort(request_id, FinishReason.ABORT, None))

    async def start_profile(self) -> dict[str, Any]:
        """Record the steps from here on; where the trace will be.  Raises InvalidRequest when that cannot be."""
        profiler = self._profiler()
        return dict(await self._call(lambda settle: settle(profiler.start())))

    async def stop_profile(self) -> dict[str, Any]:
        """End the recording and wait until its trace is written (minutes for a large one); where it is."""
        return dict(await self._call(self._profiler().stop))

    async def reset_prefix_cache(self) -> None:
        """Forget all cached prefixes.  Raises InvalidRequest while KV blocks are in use."""

        def reset(settle: Callable[[object], None]) -> None:
            self._engine.reset_prefix_cache()
            settle(None)

        await self._call(reset)

    @property
    def num_queued_tokens(self) -> int:
        """Prompt tokens of the requests that wait for their first step."""
        return self._num_queued_tokens

    def _profiler(self) -> Profiler:
        if self._engine.profiler is None:
            raise InvalidRequest(
                "There is no profiler: start the server with --profiler-config "
                '\'{"profiler": "torch", "torch_profiler_dir": "/absolute/directory"}\'.',
                code="profiler_off",
            )
        return self._engine.profiler

    async def _call(self, work: Callable[[Callable[[object], None]], None]) -> Any:
        """Run `work` on the step thread between two steps and wait for what it settles with; errors are raised."""
        if self._dead is not None or self._closing:
            raise HeadraceError(f"the engine has stopped: {self._dead or 'it was closed'}")
        self._loop = loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._calls.add(future)
        self._send(_Call(work, lambda outcome: self._post(_settle, (future, outcome))))
        try:
            return await future
        finally:
            self._calls.discard(future)

    def stats(self) -> EngineStats:
        return self._engine.stats()

    def is_healthy(self) -> tuple[bool, str]:
        """(progress is being made or nothing is to be done, why not)."""
        if self._dead is not None:
            return False, f"the step loop has stopped: {self._dead}"
        failures = self._engine.consecutive_failures
        if failures >= MAX_CONSECUTIVE_FAILURES:
            return False, f"the last {failures} steps failed ({self._engine.last_failure})"
        turn = self._engine.turn
        if turn is not None:
            stats = self._engine.stats()
            limit_s = STUCK_BEFORE_FIRST_STEP_S
            if stats.num_steps:
                slowest_s = turn.num_tokens * self._engine.slowest_token_s
                limit_s = max(STUCK_AT_LEAST_S, P99_FACTOR * stats.step_seconds_p99, SLOWEST_FACTOR * slowest_s)
            age_s = self._engine.now_s() - turn.started_s
            if age_s > limit_s:
                return False, f"no step has ended for {age_s:.0f} s (limit {limit_s:.0f} s)"
        return True, ""

    async def drain(self, timeout_s: float) -> None:
        """Wait until nothing runs or `timeout_s` is over, then abort the rest (each stream gets its end)."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            logger.warning("drain: %d requests did not end within %g s and are aborted", len(self._streams), timeout_s)
        for request_id in tuple(self._streams):
            self.abort(request_id)

    def close(self, timeout_s: float = 10.0) -> None:
        """End the step loop after its current step; what still runs is aborted.  Idempotent."""
        for request_id in tuple(self._streams):
            self.abort(request_id)
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout_s)
        for future in tuple(self._calls):
            _settle((future, HeadraceError("the engine was closed")))

    def _refuse(self, request: Request) -> None:
        """Raise InvalidRequest for what can never be served, and when too many wait."""
        ids, params, limit = request.prompt_token_ids, request.params, self.config.max_model_len
        if request.request_id in self._streams:
            raise InvalidRequest(f"The request id {request.request_id!r} is in use.", param="request_id")
        if not ids:
            raise InvalidRequest("The prompt is empty; at least one token is needed.", param="prompt")
        if len(ids) >= limit:
            raise InvalidRequest(
                context_limit_message(limit, len(ids), params.max_tokens),
                param="prompt",
                code="context_length_exceeded",
            )
        if not 0 <= min(ids) <= max(ids) < self.tokenizer.vocab_size:
            raise InvalidRequest(
                f"The prompt has a token id outside 0 to {self.tokenizer.vocab_size - 1}.", param="prompt"
            )
        if params.max_tokens < 1 or not 0 <= params.min_tokens <= params.max_tokens:
            raise InvalidRequest(
                f"`max_tokens` ({params.max_tokens}) must be at least 1, "
                f"`min_tokens` ({params.min_tokens}) at most that.",
                param="max_tokens",
            )
        if self._num_queued >= self.config.max_num_queued_reqs:
            raise InvalidRequest(
                f"The queue is full: {self._num_queued} requests wait for their first step, the limit is "
                f"{self.config.max_num_queued_reqs} (--max-num-queued-reqs).",
                code="queue_full",
            )
        # An empty queue takes any prompt: the limit bounds what waits, not how long a prompt may be.
        if self._num_queued and self._num_queued_tokens + len(ids) > self.config.max_num_queued_tokens:
            raise InvalidRequest(
                f"The queue is full: prompts of {self._num_queued_tokens} tokens wait for their first step, and with "
                f"{len(ids)} more they would exceed {self.config.max_num_queued_tokens} (--max-num-queued-tokens).",
                code="queue_full",
            )

    def _count_queued(self, stream: _Stream, sign: int) -> None:
        self._num_queued += sign
        self._num_queued_tokens += sign * len(stream.request.prompt_token_ids)

    def _send(self, command: Request | _Abort | _Call) -> int:
        """Put a command into the inbox; returns how many were sent up to and including it."""
        with self._wake:
            self._inbox.append(command)
            self._num_sent += 1
            self._wake.notify()
            return self._num_sent

    def _leave(self, stream: _Stream) -> None:
        """The reader has gone; no last output, for there is nobody to read it."""
        if self._streams.get(stream.request.request_id) is stream:
            self._retire(stream, FinishReason.ABORT)
            self._send(_Abort(stream.request.request_id, FinishReason.ABORT, None))

    def _deliver(self, delivery: _Delivery) -> None:
        """Events of one turn -> outputs.  One bad request ends alone."""
        observer, now_s = self._observer, delivery.ended_s
        for request_id, error in delivery.refused:
            if (stream := self._stream(request_id, delivery)) is not None:
                self._retire(stream, FinishReason.ERROR)
                stream.put(error)
        for request_id, num_cached in delivery.admitted:
            stream = self._stream(request_id, delivery)
            if stream is not None and stream.first_scheduled_s is None:  # else it comes back from a preemption
                stream.first_scheduled_s = delivery.started_s
                stream.assembler.num_cached_tokens = num_cached
                self._count_queued(stream, -1)
        if observer is not None and delivery.num_tokens:
            observer.step(delivery.num_tokens)
        for event, logprob in with_logprobs(delivery.events, delivery.logprobs):
            if (stream := self._stream(event.request_id, delivery)) is not None:
                if event.token_id is not None:
                    self._note_token(stream, now_s)
                self._on_event(stream, event, logprob, delivery)

    def _stream(self, request_id: str, delivery: _Delivery) -> _Stream | None:
        """The stream that a delivery speaks of.  An id may be used again after an abort: the step thread may not have
        seen that yet, and then it speaks of the one before."""
        stream = self._streams.get(request_id)
        return stream if stream is not None and stream.command <= delivery.seen else None

    def _on_event(self, stream: _Stream, event: TokenEvent, logprob: TokenLogprob | None, delivery: _Delivery) -> None:
        try:
            output = stream.assembler.push(event, logprob, delivery.prompt_logprobs.get(event.request_id))
        except Exception as error:
            logger.exception("request %s: its output cannot be decoded", event.request_id)
            output = Output(
                request_id=event.request_id,
                text="",
                token_ids=(),
                num_prompt_tokens=stream.assembler.num_prompt_tokens,
                num_cached_tokens=stream.assembler.num_cached_tokens,
                num_output_tokens=stream.assembler.num_output_tokens,
                finish_reason=FinishReason.ERROR,
                error=f"the output cannot be decoded ({type(error).__name__}: {error})",
            )
        if output is None:
            return
        if output.finish_reason is None:
            stream.put(output)
            return
        self._finish(stream, output)
        if event.finish_reason is None:  # ended on this side (stop string, failure): the core does not know yet
            self._send(_Abort(event.request_id, output.finish_reason, output.stop_reason))

    def _note_token(self, stream: _Stream, now_s: float) -> None:
        observer = self._observer
        if stream.first_token_s is None:
            stream.first_token_s = now_s
            if observer is not None:
                observer.first_token(now_s - stream.arrived_s)
        elif observer is not None and stream.last_token_s is not None:
            observer.next_token(now_s - stream.last_token_s)
        stream.last_token_s = now_s

    def _finish(self, stream: _Stream, output: Output) -> None:
        assert output.finish_reason is not None
        self._retire(stream, output.finish_reason)
        stream.put(output)

    def _retire(self, stream: _Stream, reason: FinishReason) -> None:
        """Forget a stream: from here on it is not known by its id, and its times are reported."""
        del self._streams[stream.request.request_id]
        if stream.first_scheduled_s is None:
            self._count_queued(stream, -1)
        if not self._streams:
            self._idle.set()
        if self._observer is not None:
            assembler = stream.assembler
            self._observer.finished(
                FinishedRequest(
                    finish_reason=reason,
                    num_prompt_tokens=assembler.num_prompt_tokens,
                    num_cached_tokens=assembler.num_cached_tokens,
                    num_output_tokens=assembler.num_output_tokens,
                    max_tokens=stream.request.params.max_tokens,
                    arrived_s=stream.arrived_s,
                    first_scheduled_s=stream.first_scheduled_s,
                    first_token_s=stream.first_token_s,
                    last_token_s=stream.last_token_s,
                    finished_s=self._engine.now_s(),
                )
            )

    def _fail_all(self, reason: str) -> None:
        for stream in tuple(self._streams.values()):
            self._finish(stream, stream.assembler.end(FinishReason.ERROR, f"the engine has stopped: {reason}"))
        for future in tuple(self._calls):
            _settle((future, HeadraceError(f"the engine has stopped: {reason}")))

    # -- the step thread's side -----------------------------------------------------------------------------------

    def _run(self) -> None:
        """Take commands, step, deliver; sleep while there is nothing to do."""
        engine, seen = self._engine, 0
        try:
            while (commands := self._take()) is not None:
                seen += len(commands)
                refused = self._obey(commands)
                if not engine.has_work:
                    engine.refresh_stats()
                    if refused:
                        now_s = engine.now_s()
                        self._post(self._deliver, _Delivery(seen, 0, now_s, (), (), {}, {}, now_s, refused))
                    continue
                step = engine.step()
                self._post(
                    self._deliver,
                    _Delivery(
                        seen=seen,
                        num_tokens=step.num_tokens,
                        ended_s=step.ended_s,
                        admitted=step.admitted,
                        events=step.events,
                        logprobs=step.logprobs,
                        prompt_logprobs=step.prompt_logprobs,
                        started_s=step.started_s,
                        refused=refused,
                    ),
                )
        except BaseException as error:
            # Not a request's fault (those are caught in the step) but ours: nothing can be trusted any more.
            logger.exception("the step loop has stopped")
            self._dead = f"{type(error).__name__}: {error}"
            self._post(self._fail_all, self._dead)
        finally:
            engine.close()

    def _take(self) -> list[Request | _Abort | _Call] | None:
        """Everything in the inbox; waits while there is neither a command nor work.  None ends the loop."""
        with self._wake:
            while not (self._inbox or self._closing or self._engine.has_work):
                self._wake.wait()
            if self._closing:
                return None
            commands, self._inbox = self._inbox, []
            return commands

    def _obey(self, commands: list[Request | _Abort | _Call]) -> tuple[tuple[str, Exception], ...]:
        """Hand commands to the scheduler; returns the requests it would not take."""
        refused: list[tuple[str, Exception]] = []
        for command in commands:
            if isinstance(command, _Abort):
                self._engine.abort(command.request_id, command.reason, command.stop_reason)
                continue
            if isinstance(command, _Call):
                try:
                    command.work(command.settle)
                except HeadraceError as error:
                    command.settle(error)
                except Exception as error:
                    logger.exception("a call between two steps failed")
                    command.settle(HeadraceError(f"it failed in the engine ({type(error).__name__}: {error})"))
                continue
            try:
                self._engine.add(command)
            except InvalidRequest as error:
                refused.append((command.request_id, error))
        return tuple(refused)

    def _post(self, call: Callable[..., None], argument: object) -> None:
        """Run `call` on the event loop's thread."""
        loop = self._loop
        if loop is None:
            return
        try:
            loop.call_soon_threadsafe(call, argument)
        except RuntimeError:  # the loop is closed: everybody has gone
            logger.debug("the event loop is closed; an output of the engine is dropped")


def _settle(settled: tuple[asyncio.Future[Any], object]) -> None:
    future, outcome = settled
    if future.done():
        return
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
