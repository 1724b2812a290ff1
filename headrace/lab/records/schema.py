"""One request's raw timestamps: what the client writes down, before any metric exists.

All times are integer nanoseconds of one monotonic clock; the run's manifest pairs that clock with wall time once
at each end.  Every metric of every dialect is computed from these records afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SCHEMA_VERSION = 1


@dataclass(slots=True)
class ChunkStamp:
    """One server-sent message with `choices`, stamped when the read that completed it returned.

    kind    what it carried: "content", "reasoning", "tool_call", "role", "empty" (choices, but no text)
    """

    t_ns: int
    kind: str


@dataclass(slots=True)
class RequestRecord:
    """One request, successful or not.  A failed request is a record with an error, never a missing row.

    index                  position in the workload (the same in every cell that uses the workload)
    planned_ns             intended send time from the saved schedule; in a closed loop, when the slot became free
    admitted_ns            left the client's own concurrency limit (equals planned_ns when there is none)
    sent_ns                just before the request was handed to the HTTP stack
    headers_ns             status line and headers received
    chunks                 see ChunkStamp
    done_ns                `[DONE]`, end of the body, or the error
    prompt_tokens_client   counted by the client before sending, if it has a tokenizer
    prompt_tokens_server, output_tokens_server   from the server's usage block
    output_tokens_retokenized  the text counted again by the client, if it has a tokenizer
    max_tokens             output length asked for
    status                 HTTP status, None when no answer came
    error_class            None on success; else one of: refused, http_4xx, http_5xx, timeout, disconnected,
                           protocol, server_error_event, cancelled
    error                  the start of the body or the message (bounded)
    """

    index: int
    planned_ns: int
    admitted_ns: int = 0
    sent_ns: int = 0
    headers_ns: int | None = None
    done_ns: int = 0
    chunks: list[ChunkStamp] = field(default_factory=list)
    prompt_tokens_client: int | None = None
    prompt_tokens_server: int | None = None
    output_tokens_server: int | None = None
    output_tokens_retokenized: int | None = None
    max_tokens: int | None = None
    status: int | None = None
    finish_reason: str | None = None
    error_class: str | None = None
    error: str | None = None
    output_text: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return self.error_class is None
