"""How ten load clients count, and what each would have said of one run: figures of every dialect from the same records.

Each row of `TOOLS` is one tool's definitions as its source has them; `docs/measurement.md` says where they were read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from headrace.errors import ConfigError
from headrace.lab.metrics.latency import VISIBLE, output_tokens
from headrace.lab.records.schema import RequestRecord

FIGURES = ("ttft", "tpot", "itl", "e2el")


@dataclass(frozen=True, slots=True)
class Timing:
    """One answer's times as a tool notes them: nanoseconds; `events` are the chunks that it times, at least one."""

    start: int
    events: tuple[int, ...]
    end: int
    tokens: int

    @property
    def first(self) -> int:
        return self.events[0]

    @property
    def gaps(self) -> list[float]:
        return [(b - a) / 1e9 for a, b in pairwise(self.events)]


Values = Callable[[Timing], list[float]]


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool's definitions: a word for each part (equal words are equal definitions), and the functions they name.

    start, event, end, tokens, tpot, itl, span, percentile   words, for people and for comparison
    values      figure -> the values that one answer adds, in seconds
    """

    name: str
    start: str
    event: str
    end: str
    tokens: str
    tpot: str
    itl: str
    span: str
    percentile: str
    timing: Callable[[RequestRecord], Timing | None]
    values: Mapping[str, Values]


# -- parts of definitions: words, and what they do -------------------------------------------------------------------

SENT, PLANNED = "the request is sent", "the request is due"
ANY = "the first message with choices, a role or an empty one too"
CONTENT = "the first chunk with answer text"
VISIBLE_TEXT = "the first chunk with answer text, reasoning or a tool call"
LAST_MESSAGE = "the last message with choices"
LAST_TEXT = "the last chunk with text"
STREAM_END = "the end of the stream"
USAGE, RETOKENIZED = "the server's usage count", "the text tokenised again"
USAGE_OR_ASKED = "the server's usage count, else the number asked for"
USAGE_OR_CHUNKS = "the server's usage count, else the number of chunks"
WHOLE, SPAN = "the whole run, from the first send to the last answer", "from the first request to the last response"
LINEAR, NEAREST = "linear interpolation", "the sample at n·p, no interpolation"


def _events(record: RequestRecord, event: str) -> tuple[int, ...]:
    if event == ANY:
        return tuple(chunk.t_ns for chunk in record.chunks)
    kinds = {"content"} if event == CONTENT else VISIBLE
    return tuple(chunk.t_ns for chunk in record.chunks if chunk.kind in kinds)


def _tokens(record: RequestRecord, tokens: str, chunks: int) -> int:
    if tokens == RETOKENIZED:
        return record.output_tokens_retokenized or output_tokens(record) or 1
    if record.output_tokens_server:
        return record.output_tokens_server
    if tokens == USAGE_OR_ASKED:
        return record.max_tokens or 1
    return chunks if tokens == USAGE_OR_CHUNKS else output_tokens(record) or 1


def _timing(start: str, event: str, end: str, tokens: str) -> Callable[[RequestRecord], Timing | None]:
    def timing(record: RequestRecord) -> Timing | None:
        events = _events(record, event)
        if not events:
            return None
        return Timing(
            record.planned_ns if start == PLANNED else record.sent_ns,
            events,
            record.done_ns if end == STREAM_END else events[-1],
            _tokens(record, tokens, len(events)),
        )

    return timing


def _ttft(timing: Timing) -> list[float]:
    return [(timing.first - timing.start) / 1e9]


def _e2el(timing: Timing) -> list[float]:
    return [(timing.end - timing.start) / 1e9]


def _to_the_end(timing: Timing) -> list[float]:
    return [(timing.end - timing.first) / 1e9 / (timing.tokens - 1)] if timing.tokens > 1 else []


def _to_last_token(timing: Timing) -> list[float]:
    return [(timing.events[-1] - timing.first) / 1e9 / (timing.tokens - 1)] if timing.tokens > 1 else []


def _with_ttft(timing: Timing) -> list[float]:
    return [(timing.events[-1] - timing.start) / 1e9 / timing.tokens]


def _chunk_gaps(timing: Timing) -> list[float]:
    return timing.gaps


def _token_gaps(timing: Timing) -> list[float]:
    """k tokens of a chunk share its time: k - 1 gaps of zero; which chunk holds how many does not matter."""
    return [*timing.gaps, *[0.0] * max(timing.tokens - len(timing.events), 0)]


def _mean_gap_with_ttft(timing: Timing) -> list[float]:
    return [(timing.events[-1] - timing.start) / 1e9 / len(timing.events)]


def _none(_: Timing) -> list[float]:
    return []


_TPOT = {
    "(end − first token) / (tokens − 1)": _to_the_end,
    "(last token − first token) / (tokens − 1)": _to_last_token,
    "(last token − start) / tokens, so it contains TTFT": _with_ttft,
    "not reported": _none,
}
_ITL = {
    "every gap between chunks, all answers pooled": _chunk_gaps,
    "one mean an answer, (last token − first token) / (tokens − 1): what others call TPOT": _to_last_token,
    "one mean an answer, (end − first token) / (tokens − 1): what others call TPOT": _to_the_end,
    "a gap a token, tokens of one chunk are 0 apart, all answers pooled": _token_gaps,
    "one mean an answer, (last token − start) / chunks, so it contains TTFT": _mean_gap_with_ttft,
    "not reported": _none,
}
_TO_END, _TO_LAST, _CONTAINS_TTFT, _NO_TPOT = _TPOT
_POOLED, _MEAN_TO_LAST, _MEAN_TO_END, _PER_TOKEN, _MEAN_WITH_TTFT, _NO_ITL = _ITL


def _tool(
    name: str, event: str, end: str, tokens: str, tpot: str, itl: str, *,
    start: str = SENT, span: str = WHOLE, percentile: str = LINEAR,
) -> Tool:  # fmt: skip
    values = {"ttft": _ttft, "tpot": _TPOT[tpot], "itl": _ITL[itl], "e2el": _e2el}
    timing = _timing(start, event, end, tokens)
    return Tool(name, start, event, end, tokens, tpot, itl, span, percentile, timing, values)


TOOLS: dict[str, Tool] = {
    tool.name: tool
    for tool in (
        _tool("headrace", VISIBLE_TEXT, LAST_TEXT, USAGE, _TO_LAST, _POOLED, start=PLANNED),
        _tool("vllm", ANY, LAST_MESSAGE, USAGE, _TO_END, _POOLED),
        _tool("vllm-2025", CONTENT, STREAM_END, RETOKENIZED, _TO_END, _POOLED),
        _tool("sglang", VISIBLE_TEXT, STREAM_END, USAGE_OR_ASKED, _TO_END, _POOLED),
        _tool("guidellm", VISIBLE_TEXT, STREAM_END, USAGE_OR_CHUNKS, _CONTAINS_TTFT, _MEAN_TO_LAST, span=SPAN),
        _tool("aiperf", VISIBLE_TEXT, LAST_TEXT, RETOKENIZED, _NO_TPOT, _MEAN_TO_END, span=SPAN),
        _tool("inference-perf", CONTENT, STREAM_END, RETOKENIZED, _TO_LAST, _PER_TOKEN, span=SPAN),
        _tool("loadgen", VISIBLE_TEXT, STREAM_END, USAGE, _TO_END, _NO_ITL, start=PLANNED, percentile=NEAREST),
        _tool("genai-bench", CONTENT, STREAM_END, USAGE_OR_CHUNKS, _TO_END, _NO_ITL),
        _tool("hf", CONTENT, STREAM_END, RETOKENIZED, _NO_TPOT, _MEAN_TO_LAST),
        _tool("llmperf", CONTENT, STREAM_END, RETOKENIZED, _NO_TPOT, _MEAN_WITH_TTFT),
    )
}


def tool(name: str) -> Tool:
    """Raises ConfigError for a name that is not in TOOLS."""
    if name not in TOOLS:
        raise ConfigError(f"a dialect is one of {', '.join(TOOLS)}, not {name!r}")
    return TOOLS[name]


@dataclass(frozen=True, slots=True)
class Figures:
    """What a tool would have said: seconds by figure, and totals.  `tokens` are output tokens of successes."""

    tool: str
    values_s: Mapping[str, Sequence[float]]
    completed: int
    failed: int
    tokens: int
    span_s: float

    def metrics(self, percentiles: Sequence[float] = (50, 90, 95, 99)) -> dict[str, float]:
        """By vLLM's keys, in milliseconds; a figure that the tool does not report is absent."""
        found: dict[str, float] = {"completed": self.completed, "failed": self.failed, "duration": self.span_s}
        if self.completed:
            found["total_output_tokens"] = self.tokens
        if self.completed and self.span_s > 0:
            found["request_throughput"] = self.completed / self.span_s
            found["output_throughput"] = self.tokens / self.span_s
        for figure, values in self.values_s.items():
            if values:
                found |= self._statistics(figure, np.asarray(values) * 1e3, percentiles)
        return found

    def _statistics(self, figure: str, values: np.ndarray, percentiles: Sequence[float]) -> dict[str, float]:
        found = {f"mean_{figure}_ms": float(values.mean()), f"median_{figure}_ms": self._percentile(values, 50)}
        for p in percentiles:
            if p != 50:
                found[f"p{p:g}_{figure}_ms"] = self._percentile(values, p)
        return found

    def _percentile(self, values: np.ndarray, p: float) -> float:
        if TOOLS[self.tool].percentile == LINEAR:
            return float(np.percentile(values, p))
        ordered = np.sort(values)
        return float(ordered[min(len(ordered) - 1, math.floor(len(ordered) * p / 100))])


def figures(name: str, records: Sequence[RequestRecord], duration_s: float) -> Figures:
    """One run in the tool's terms.  `duration_s` is the run's whole length, for the tools that divide by it."""
    this = tool(name)
    good = [timing for record in records if record.ok and (timing := this.timing(record)) is not None]
    span_s = duration_s
    if this.span == SPAN and good:
        span_s = (max(timing.end for timing in good) - min(timing.start for timing in good)) / 1e9
    return Figures(
        tool=name,
        values_s={figure: [value for timing in good for value in of(timing)] for figure, of in this.values.items()},
        completed=len(good),
        failed=len(records) - len(good),
        tokens=sum(timing.tokens for timing in good),
        span_s=span_s,
    )
