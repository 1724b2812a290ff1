"""One kept HTTP/1.1 connection: stamps each read when it arrives, and looks only for the end of the answer.

Parsing an event costs twenty times as much as noting `(time, bytes)`, and one thread stamps for all streams, so
everything that can wait until the run is over does.  The one thing that cannot is where a body ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from headrace.lab.client.http1 import MAX_HEAD_BYTES, Dechunker, Framing, HttpError, parse_head

# The usual end of a chunked body: the line end of a chunk, then the last chunk.
_USUAL_END = b"\r\n0\r\n\r\n"


@dataclass(slots=True)
class Exchange:
    """What happened to one request on the wire: times of the transport's clock, error_class as in RequestRecord.

    connected_ns  when its connection was ready, None for a kept one
    reads         (time, bytes) of the body; with `chunked`, its chunked coding still on
    """

    sent_ns: int = 0
    connected_ns: int | None = None
    headers_ns: int | None = None
    done_ns: int = 0
    status: int | None = None
    content_type: str = ""
    chunked: bool = False
    reads: list[tuple[int, bytes]] = field(default_factory=list)
    error_class: str | None = None
    error: str | None = None

    @property
    def ok(self) -> bool:
        return self.error_class is None

    @property
    def new_connection(self) -> bool:
        return self.connected_ns is not None

    @property
    def bytes_read(self) -> int:
        return sum(len(data) for _, data in self.reads)

    def fail(self, error_class: str, error: str) -> None:
        if self.error_class is None:
            self.error_class, self.error = error_class, error

    def body(self) -> bytes:
        """The whole body, its coding taken off as far as it can be."""
        raw = b"".join(data for _, data in self.reads)
        if not self.chunked:
            return raw
        try:
            return Dechunker().feed(raw)
        except HttpError:
            return raw


class Connection(asyncio.Protocol):
    """Carries one exchange at a time; `release(self)` is called when it may carry the next one."""

    __slots__ = (
        *("_append", "_body", "_ended", "_exchange", "_framing", "_head", "_keep", "_left", "_now", "_release"),
        *("_transport", "_walked", "_walker", "idle_since_ns", "open"),
    )

    def __init__(self, now: Callable[[], int], release: Callable[[Connection], None]) -> None:
        self._now = now
        self._release = release
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._ended: asyncio.Future[bool] | None = None
        self._body = False
        self._framing = Framing.EMPTY
        self._head = b""
        self._keep = False
        self._left = 0
        self.open = False
        self.idle_since_ns = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one without saying so
        self.open = True

    def start(self, request: bytes, exchange: Exchange, ended: asyncio.Future[bool]) -> None:
        """Send a request.  `ended` becomes True at the end of the answer or its failure, both noted in `exchange`;
        False when the server closed the connection before it can have read the request (it may be sent again)."""
        assert self._transport is not None and self._exchange is None
        self._exchange, self._ended = exchange, ended
        self._append = exchange.reads.append
        self._body, self._head = False, b""
        self._transport.write(request)

    def abort(self) -> None:
        """Close at once; the exchange, if one is under way, is forgotten."""
        self.open = False
        self._exchange = self._ended = None
        if self._transport is not None:
            self._transport.abort()

    # -- called by the event loop -------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        t_ns = self._now()
        if not self._body:
            self._read_head(t_ns, data)
            return
        self._append((t_ns, data))
        if self._framing is Framing.CHUNKED:
            # A chunked body ends in two line ends; this is the whole check for nearly every read.
            if data.endswith(b"\r\n\r\n") or len(data) < 4:
                self._maybe_end(t_ns, data)
        elif self._framing is Framing.LENGTH:
            self._left -= len(data)
            if self._left <= 0:
                self._finish(t_ns)

    def eof_received(self) -> bool:
        return False  # close; connection_lost follows

    def connection_lost(self, error: Exception | None) -> None:
        self.open = False
        exchange, ended = self._exchange, self._ended
        if exchange is None or ended is None:
            return
        t_ns = self._now()
        if self._body and self._framing is Framing.CLOSE and error is None:
            self._finish(t_ns)
            return
        untouched = exchange.headers_ns is None and not self._head
        self._exchange = self._ended = None
        exchange.done_ns = t_ns
        if untouched and exchange.connected_ns is None:  # kept too long: its server had closed it already
            if not ended.done():
                ended.set_result(False)
            return
        where = "before" if exchange.headers_ns is None else "in the middle of"
        why = f"{type(error).__name__}: {error}" if error is not None else "closed by the server"
        exchange.fail("disconnected", f"the connection was lost {where} the answer ({why})")
        if not ended.done():
            ended.set_result(True)

    # -- the answer ---------------------------------------------------------------------------------------------------

    def _read_head(self, t_ns: int, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None:  # nobody asked: this connection cannot be trusted any more
            self.abort()
            return
        self._head += data
        while (end := self._head.find(b"\r\n\r\n")) >= 0:
            try:
                head = parse_head(self._head[:end])
            except HttpError as error:
                self._break(t_ns, str(error))
                return
            rest, self._head = self._head[end + 4 :], b""
            if head.status < 200:  # an interim answer; the real one follows
                self._head = rest
                continue
            exchange.headers_ns = t_ns
            exchange.status = head.status
            exchange.content_type = head.content_type
            exchange.chunked = head.framing is Framing.CHUNKED
            if head.status != 200:
                exchange.error = head.reason
            self._framing, self._left, self._keep = head.framing, head.length, head.keep_alive
            self._walker, self._walked = Dechunker(), 0
            self._body = True
            if head.framing is Framing.EMPTY:
                self._finish(t_ns)
            elif rest:
                self._append((t_ns, rest))
                if head.framing is Framing.CHUNKED:
                    self._maybe_end(t_ns, rest)
                elif head.framing is Framing.LENGTH:
                    self._left -= len(rest)
                    if self._left <= 0:
                        self._finish(t_ns)
            return
        if len(self._head) > MAX_HEAD_BYTES:
            self._break(t_ns, "a head that does not end")

    def _maybe_end(self, t_ns: int, data: bytes) -> None:
        """End on the usual end, and on what a walk over all chunks says otherwise.

        JSON holds no line ends, so an event cannot hold the usual end; `read_answer` walks over the chunks again after
        the run and would name an answer that was cut here.
        """
        if data.endswith(_USUAL_END):
            self._finish(t_ns)
            return
        assert self._exchange is not None
        try:
            for _, piece in self._exchange.reads[self._walked :]:
                self._walker.feed(piece)
        except HttpError as error:
            self._break(t_ns, str(error))
            return
        self._walked = len(self._exchange.reads)
        if self._walker.done:
            self._finish(t_ns)

    def _finish(self, t_ns: int) -> None:
        exchange, ended = self._exchange, self._ended
        assert exchange is not None and ended is not None
        exchange.done_ns = t_ns
        self._exchange = self._ended = None
        self._body = False
        if self._keep and self._framing is not Framing.CLOSE and self._left >= 0 and self.open:
            self.idle_since_ns = t_ns
            self._release(self)
        elif self._transport is not None:
            self.open = False
            self._transport.close()
        if not ended.done():
            ended.set_result(True)

    def _break(self, t_ns: int, why: str) -> None:
        """What came is no HTTP: note it and close."""
        exchange, ended = self._exchange, self._ended
        assert exchange is not None and ended is not None
        exchange.done_ns = t_ns
        exchange.fail("protocol", why)
        self.abort()
        if not ended.done():
            ended.set_result(True)
