"""What leaves the engine: texts, ends, log-probabilities, times and counters; and how events become texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from headrace.core.batch import TokenEvent
from headrace.core.request import FinishReason, Request
from headrace.engine.detokenizer import Detokenizer


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

    `text` never splits a character and never holds part of a stop string: it is empty while all of it is held back,
    for a client times tokens, not characters.  `token_ids` are the tokens since the previous output (several when the
    request has a `stream_interval`).
    `prompt_logprobs` (of all prompt tokens but the first) come once, with the first output.
    `num_output_tokens` counts sampled tokens so far, the end token included.
    """

    request_id: str
    text: str
    token_ids: tuple[int, ...]
    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    logprobs: tuple[TokenLogprob, ...] | None = None
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None
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
    """A snapshot that never blocks the step loop.  Counters count from the start of the engine.

    Of speculation: chunks with drafts, their drafts, those that were right, and how often the first, second, … was.
    """

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
    num_drafts: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    accepted_at: tuple[int, ...] = ()


# A stop string in the last token's text ends it before any of these does.
_YIELDS_TO_STOP = (None, FinishReason.LENGTH, FinishReason.STOP, FinishReason.REPETITION)

Logprobs = Mapping[str, Sequence[TokenLogprob]]
"""Of a step's new tokens, in their order, by request id."""


def with_logprobs(events: Iterable[TokenEvent], logprobs: Logprobs) -> Iterator[tuple[TokenEvent, TokenLogprob | None]]:
    """Events, each with the log-probability of its token where the request asked: a step may bring several."""
    rest = {request_id: iter(each) for request_id, each in logprobs.items()}
    for event in events:
        own = rest.get(event.request_id)
        yield event, None if own is None or event.token_id is None else next(own, None)


class Observer(Protocol):
    """Told about what the histograms need; called on the event loop's thread."""

    def step(self, num_tokens: int) -> None: ...
    def first_token(self, seconds_since_arrival: float) -> None: ...
    def next_token(self, seconds_since_previous: float) -> None: ...
    def finished(self, request: FinishedRequest) -> None: ...


class OutputAssembler:
    """Turns one request's token events into Outputs.  Pure; belongs to one thread.

    `stopped_early` says that a stop string ended the text while the core still runs the request: it must be aborted
    there.  After an Output with a finish reason nothing more comes.
    """

    def __init__(self, request: Request, detokenizer: Detokenizer) -> None:
        self.request_id = request.request_id
        self.num_prompt_tokens = len(request.prompt_token_ids)
        self.num_cached_tokens = 0
        self.num_output_tokens = 0
        self.stopped_early = False
        self._detokenizer = detokenizer
        self._show_stop_token = request.params.include_stop_str_in_output
        self._has_text = request.params.detokenize
        self._interval = request.params.stream_interval
        self._begun = False
        self._text = ""
        self._wants_logprobs = request.params.logprobs is not None
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._prompt_logprobs: tuple[TokenLogprob, ...] | None = None

    def push(
        self,
        event: TokenEvent,
        logprob: TokenLogprob | None = None,
        prompt_logprobs: tuple[TokenLogprob, ...] | None = None,
    ) -> Output | None:
        """The next Output, or None inside a `stream_interval`."""
        if prompt_logprobs is not None:
            self._prompt_logprobs = prompt_logprobs
        text, reason, stop_reason = "", event.finish_reason, event.stop_reason
        if event.token_id is not None:
            self.num_output_tokens += 1
            self._token_ids.append(event.token_id)
            if logprob is not None:
                self._logprobs.append(logprob)
            # The core ends with STOP only for an end token or a stop id, whose text is no part of the answer.
            hidden = reason is FinishReason.STOP and not self._show_stop_token
            text = self._detokenizer.push(event.token_id, silent=hidden or not self._has_text)
        if reason is not None:
            text += self._detokenizer.flush()
        stop = self._detokenizer.stopped_by
        if stop is not None and reason in _YIELDS_TO_STOP:
            self.stopped_early = reason is None
            reason, stop_reason = FinishReason.STOP, stop
        self._text += text
        if reason is None and (not self._token_ids or (self._begun and len(self._token_ids) < self._interval)):
            return None
        return self._output(reason, stop_reason, event.error)

    def end(self, reason: FinishReason, error: str | None = None) -> Output:
        """The last Output of a request that is ended from outside (abort, a failure)."""
        self._text += self._detokenizer.flush()
        return self._output(reason, None, error)

    def _output(self, reason: FinishReason | None, stop_reason: int | str | None, error: str | None) -> Output:
        output = Output(
            request_id=self.request_id,
            text=self._text,
            token_ids=tuple(self._token_ids),
            num_prompt_tokens=self.num_prompt_tokens,
            num_cached_tokens=self.num_cached_tokens,
            num_output_tokens=self.num_output_tokens,
            logprobs=tuple(self._logprobs) if self._wants_logprobs else None,
            prompt_logprobs=self._prompt_logprobs,
            finish_reason=reason,
            stop_reason=stop_reason,
            error=error,
        )
        self._begun = True
        self._text = ""
        self._token_ids.clear()
        self._logprobs.clear()
        self._prompt_logprobs = None
        return output
