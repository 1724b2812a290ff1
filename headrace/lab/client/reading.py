"""From the bytes of one answer to its record: done after the run, so that parsing cannot delay a time stamp.

Storing `(t_ns, bytes)` costs about a ninetieth of parsing in place, and one thread sends, reads and stamps for all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from headrace.lab.client.http1 import Dechunker, HttpError
from headrace.lab.client.sse import SSEError, SSEMessage, SSEParser
from headrace.lab.records.schema import ChunkStamp, RequestRecord

MAX_ERROR_CHARS = 2000
DONE = b"[DONE]"


def read_answer(
    record: RequestRecord, reads: Iterable[tuple[int, bytes]], *, content_type: str = "", chunked: bool = False
) -> None:
    """Fill chunks, text, usage, finish reason, and what went wrong inside the stream, into `record`.

    With `chunked` the reads still have their chunked coding on.  `record.done_ns` holds the end of the body and moves
    back to `[DONE]` where the server sent one.  An error that the transport already wrote stays: it happened first.
    """
    reader = _Reader(record)
    parser = SSEParser()
    coding = Dechunker() if chunked else None
    raw = b""
    try:
        for t_ns, data in reads:
            piece = data if coding is None else coding.feed(data)
            if len(raw) < MAX_ERROR_CHARS:
                raw += piece[:MAX_ERROR_CHARS]
            for message in parser.feed(piece):
                reader.message(t_ns, message)
        for message in parser.close():
            reader.message(record.done_ns, message)
        if coding is not None and not coding.done:
            reader.fail("protocol", "the answer's last chunk is missing")
    except (SSEError, HttpError) as error:
        reader.fail("protocol", str(error))
    reader.finish(raw, content_type)


def bounded(text: str) -> str:
    """The start of a body or message, as it is kept in a record."""
    return text if len(text) <= MAX_ERROR_CHARS else text[:MAX_ERROR_CHARS] + f"… ({len(text)} characters)"


class _Reader:
    def __init__(self, record: RequestRecord) -> None:
        self._record = record
        self._texts: dict[str, list[str]] = {"content": [], "reasoning": [], "tool_call": []}
        self._done = False

    def fail(self, error_class: str, error: str) -> None:
        if self._record.error_class is None:
            self._record.error_class = error_class
            self._record.error = bounded(error)

    def message(self, t_ns: int, message: SSEMessage) -> None:
        record = self._record
        if message.data == DONE:
            self._done = True
            record.done_ns = t_ns
            return
        try:
            body = json.loads(message.data)
        except ValueError:
            body = None
        if not isinstance(body, dict):
            self.fail("protocol", f"a message is not a JSON object: {message.data[:200]!r}")
            return
        if message.event == b"error" or body.get("error"):
            self.fail("server_error_event", json.dumps(body.get("error", body), ensure_ascii=False))
            return
        if not record.chunks and isinstance(body.get("id"), str):
            record.extra["response_id"] = bounded(body["id"])  # the server's name for the request, in its own logs too
        choices = body.get("choices")
        if isinstance(choices, list) and choices:
            record.chunks.append(ChunkStamp(t_ns, self._kind([c for c in choices if isinstance(c, dict)])))
        self._usage(body.get("usage"))

    def _usage(self, usage: Any) -> None:
        """Usage may come alone, beside choices, or with every chunk (then it grows): the last one counts."""
        if not isinstance(usage, dict):
            return
        record = self._record
        if isinstance(prompt := usage.get("prompt_tokens"), int):
            record.prompt_tokens_server = prompt
        if isinstance(output := usage.get("completion_tokens"), int):
            record.output_tokens_server = output
        details = usage.get("prompt_tokens_details")
        if isinstance(details, dict) and isinstance(cached := details.get("cached_tokens"), int):
            record.extra["cached_tokens"] = cached
        details = usage.get("completion_tokens_details")
        if isinstance(details, dict) and isinstance(reasoned := details.get("reasoning_tokens"), int):
            record.extra["reasoning_tokens"] = reasoned

    def _kind(self, choices: list[dict[str, Any]]) -> str:
        """What a message carried: the strongest of content, reasoning, tool_call, role, empty."""
        kinds = {"empty"}
        for choice in choices:
            if reason := choice.get("finish_reason"):
                self._record.finish_reason = str(reason)
            delta = choice.get("delta")
            if not isinstance(delta, dict):
                delta = {"content": choice.get("text")}
            reasoning = delta.get("reasoning_content") or delta.get("reasoning")
            for kind, text in (("content", delta.get("content")), ("reasoning", reasoning)):
                if isinstance(text, str) and text:
                    self._texts[kind].append(text)
                    kinds.add(kind)
            if calls := delta.get("tool_calls") or delta.get("function_call"):
                self._texts["tool_call"] += _call_texts(calls)
                kinds.add("tool_call")
            if delta.get("role"):
                kinds.add("role")
        return next(kind for kind in ("content", "reasoning", "tool_call", "role", "empty") if kind in kinds)

    def finish(self, raw: bytes, content_type: str) -> None:
        record = self._record
        record.output_text = "".join(self._texts["content"])
        for kind, key in (("reasoning", "reasoning_text"), ("tool_call", "tool_text")):
            if self._texts[kind]:
                record.extra[key] = "".join(self._texts[kind])
        if record.error_class is not None:
            return
        body = raw.decode("utf-8", "replace")
        if not record.chunks:
            what = "an empty body" if not raw else f"{content_type or 'no content type'}: {body}"
            self.fail("protocol", f"no message with choices in an answer with status {record.status}; {what}")
        elif not self._done and record.finish_reason is None:
            # A body that ends cleanly in the middle, as a proxy or a killed worker leaves it.
            self.fail("disconnected", f"the stream ended after {len(record.chunks)} messages, before its last one")


def _call_texts(calls: Any) -> list[str]:
    """Names and arguments of tool calls, as they stream in: they are generated tokens, too."""
    texts = []
    for call in calls if isinstance(calls, list) else [calls]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if isinstance(function, dict):
            texts += [text for key in ("name", "arguments") if isinstance(text := function.get(key), str)]
    return texts
