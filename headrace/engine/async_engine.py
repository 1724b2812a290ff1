"""Submit, stream, abort: the engine as the server sees it.

The step loop runs in a thread of its own; the methods here belong to the event loop's thread.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from headrace.core.request import FinishReason, Request
from headrace.engine.config import EngineConfig


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probability of one output token (natural log), with the alternatives that were asked for.

    `rank` is 1 for the most likely token.  `top` is (token id, logprob), most likely first.
    """

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Output:
    """New text of one request, or its end, or both.

    `text` never splits a character and never holds part of a stop string; it may be empty only in the last
    output.  `token_ids` are the tokens since the previous output (several when text was held back).
    `num_output_tokens` counts sampled tokens so far, the end token included.
    """

    request_id: str
    text: str
    token_ids: tuple[int, ...]
    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class FinishedRequest:
    """Times of one ended request, for the metrics: seconds on one monotonic clock, None where not reached."""

    finish_reason: FinishReason
    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    max_tokens: int
    arrived_s: float
    first_scheduled_s: float | None
    first_token_s: float | None
    last_token_s: float | None
    finished_s: float


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot that never blocks the step loop.  Counters count from the start of the engine."""

    num_running: int
    num_waiting: int
    kv_blocks_total: int
    kv_blocks_free: int
    num_steps: int
    last_step_end_s: float | None
    step_seconds_p99: float
    prompt_tokens: int
    prompt_tokens_cached: int
    generation_tokens: int
    num_preemptions: int
    prefix_cache_queries: int
    prefix_cache_hits: int


class Observer(Protocol):
    """Told about what the histograms need; called on the event loop's thread."""

    def step(self, num_tokens: int) -> None: ...
    def first_token(self, seconds_since_arrival: float) -> None: ...
    def next_token(self, seconds_since_previous: float) -> None: ...
    def finished(self, request: FinishedRequest) -> None: ...


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
