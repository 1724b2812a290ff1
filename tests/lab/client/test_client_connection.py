"""One connection, fed with bytes by hand: what it stamps, where it sees the end, what it makes of a lost server."""

from __future__ import annotations

import asyncio

import pytest

from headrace.clock import FakeClock
from headrace.lab.client.connection import Connection, Exchange

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class FakeTransport:
    """Remembers what was written and whether it was closed."""

    def __init__(self) -> None:
        self.written = b""
        self.closed = False

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    abort = close


class World:
    """A connection with one request under way."""

    def __init__(self, *, kept: bool = False) -> None:
        self.clock, self.transport = FakeClock(), FakeTransport()
        self.released: list[Connection] = []
        self.connection = Connection(self.clock.now_ns, self.released.append)
        self.connection.connection_made(self.transport)  # type: ignore[arg-type]
        self.exchange = Exchange(connected_ns=None if kept else 0)
        self.ended: asyncio.Future[bool] = asyncio.new_event_loop().create_future()
        self.connection.start(b"request", self.exchange, self.ended)

    def receives(self, *pieces: bytes) -> World:
        for piece in pieces:
            self.clock.advance_ns(10)
            self.connection.data_received(piece)
        return self

    @property
    def result(self) -> bool | None:
        return self.ended.result() if self.ended.done() else None


def test_every_read_has_its_own_time_and_the_end_frees_the_connection() -> None:
    world = World().receives(HEAD + b"3\r\nabc\r\n", b"2\r\nde\r\n", b"0\r\n\r\n")
    assert world.transport.written == b"request" and world.result is True and world.exchange.ok
    assert [t for t, _ in world.exchange.reads] == [10, 20, 30] and world.exchange.body() == b"abcde"
    assert (world.exchange.headers_ns, world.exchange.done_ns) == (10, 30) and world.released == [world.connection]


@pytest.mark.parametrize(
    "end", [b"2\r\n\n\n\r\n0\r\n\r\n", b"0\r\n\r\n", b"0\r\nServer-Timing: x\r\n\r\n", b"00;a\r\n\r\n"]
)
def test_an_end_is_seen_however_it_is_split(end: bytes) -> None:
    for at in range(len(end)):
        pieces = [piece for piece in (end[:at], end[at:]) if piece]
        world = World().receives(HEAD, b"3\r\nabc\r\n")
        assert world.result is None
        assert world.receives(*pieces).result is True, (end, at)


def test_payload_that_looks_like_a_line_end_is_no_end() -> None:
    world = World().receives(
        HEAD, b"8\r\nab\r\n\r\n", b"\r\n\r\n"
    )  # eight bytes: ab, then line ends of the payload's own
    assert world.result is None
    assert world.receives(b"0\r\n\r\n").result is True and world.exchange.body() == b"ab\r\n\r\n\r\n"


def test_lengths_interim_answers_and_bodies_that_end_with_the_connection() -> None:
    assert World().receives(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab", b"cd").exchange.body() == b"abcd"
    assert World().receives(b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD, b"0\r\n\r\n").result is True
    until_close = World().receives(b"HTTP/1.1 200 OK\r\n\r\nabc")
    until_close.connection.connection_lost(None)
    assert until_close.result is True and until_close.exchange.ok and until_close.exchange.body() == b"abc"


@pytest.mark.parametrize("raw", [b"SSH-2.0-OpenSSH\r\n\r\n", HEAD + b"zz\r\n\r\n", b"x" * 70_000])
def test_what_is_no_http_is_named_and_the_connection_closed(raw: bytes) -> None:
    world = World().receives(raw)
    assert world.exchange.error_class == "protocol" and world.transport.closed and not world.released


def test_a_kept_connection_that_was_closed_before_it_was_read_may_be_tried_again() -> None:
    kept, fresh = World(kept=True), World()
    kept.connection.connection_lost(None)
    fresh.connection.connection_lost(ConnectionResetError("reset by peer"))
    assert kept.result is False and kept.exchange.ok
    assert fresh.result is True and fresh.exchange.error_class == "disconnected"
    assert "before the answer (ConnectionResetError: reset by peer)" in str(fresh.exchange.error)


def test_a_stream_that_was_lost_in_the_middle_is_never_tried_again() -> None:
    world = World(kept=True).receives(HEAD, b"3\r\nabc\r\n")
    world.connection.connection_lost(None)
    assert world.result is True and "in the middle of the answer" in str(world.exchange.error)


def test_bytes_that_nobody_asked_for_close_the_connection() -> None:
    world = World().receives(HEAD, b"0\r\n\r\n", b"HTTP/1.1 408 Request Timeout\r\n\r\n")
    assert world.transport.closed and not world.connection.open
