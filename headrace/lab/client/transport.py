"""Streaming POSTs over kept connections: stamps what happened, parses nothing, raises nothing but cancellation."""

from __future__ import annotations

import asyncio
import resource
import socket
import ssl
from collections.abc import Mapping
from types import TracebackType

from headrace.clock import Clock
from headrace.lab.client.connection import Connection, Exchange
from headrace.lab.client.http1 import header_lines, parse_address

MAX_ERROR_BODY_BYTES = 8 * 1024
# Servers close idle connections (uvicorn after 5 s); a request on one that is being closed would be sent twice.
MAX_IDLE_NS = 4_000_000_000

__all__ = ["Exchange", "HttpTransport"]


class HttpTransport:
    """Connections to one address, as many as there are requests in flight.  Use as an async context manager.

    Proxies in the environment are not used: the proxy would be what is measured.  Raises ConfigError for an address or
    headers that cannot be sent.
    """

    def __init__(self, url: str, *, headers: Mapping[str, str], timeout_s: float, clock: Clock) -> None:
        self._address = address = parse_address(url)
        lines = header_lines(
            {"Host": address.authority, "Content-Type": "application/json", "Accept": "*/*", **headers}
        )
        self._head = f"POST {address.target} HTTP/1.1\r\n{lines}Content-Length: ".encode("latin-1")
        self._timeout_s = timeout_s
        self._now = clock.now_ns
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()
        self._tls = ssl.create_default_context() if address.tls else None
        self._found: list[tuple[int, str]] = []  # (family, address): the one that answered is first

    async def __aenter__(self) -> HttpTransport:
        _raise_file_limit()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for connection in [*self._idle, *self._busy]:
            connection.abort()
        self._idle.clear()

    async def post(self, body: bytes, exchange: Exchange) -> None:
        """Send `body` and fill `exchange` until the answer ends or fails.  Cancellation is noted and passed on."""
        request = b"".join((self._head, str(len(body)).encode(), b"\r\n\r\n", body))
        loop = asyncio.get_running_loop()
        connection: Connection | None = None
        exchange.sent_ns = self._now()
        try:
            async with asyncio.timeout(self._timeout_s):
                while True:
                    connection = self._kept() or await self._connect(exchange)
                    self._busy.add(connection)
                    ended = loop.create_future()
                    connection.start(request, exchange, ended)
                    if await ended:
                        break
                    self._busy.discard(connection)
        except asyncio.CancelledError:
            exchange.done_ns = self._now()
            exchange.fail("cancelled", "cancelled by the client")
            _drop(connection)
            raise
        except TimeoutError:
            exchange.done_ns = self._now()
            exchange.fail("timeout", f"no end of the answer within {self._timeout_s:g} s")
            _drop(connection)
        except (OSError, ssl.SSLError) as error:
            exchange.done_ns = self._now()
            exchange.fail("refused", f"{self._address.authority}: {_words(error)}")
        finally:
            if connection is not None:
                self._busy.discard(connection)
        if exchange.ok and exchange.status != 200:
            text = exchange.body()[:MAX_ERROR_BODY_BYTES].decode("utf-8", "replace")
            reason, exchange.error = exchange.error, None
            exchange.fail(_status_class(exchange.status), text or str(reason))
            exchange.reads.clear()

    def _kept(self) -> Connection | None:
        """The connection that was used last: those that idle longest are the ones that servers close."""
        oldest_ns = self._now() - MAX_IDLE_NS
        while self._idle:
            connection = self._idle.pop()
            if connection.open and connection.idle_since_ns >= oldest_ns:
                return connection
            connection.abort()
        return None

    async def _connect(self, exchange: Exchange) -> Connection:
        loop = asyncio.get_running_loop()
        address = self._address
        if not self._found:
            infos = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
            self._found = [(family, str(sockaddr[0])) for family, _, _, _, sockaddr in infos]
        errors: list[OSError] = []
        for family, host in list(self._found):
            try:
                _, connection = await loop.create_connection(
                    lambda: Connection(self._now, self._idle.append),
                    host,
                    address.port,
                    family=family,
                    ssl=self._tls,
                    server_hostname=address.host if self._tls else None,
                )
            except OSError as error:
                errors.append(error)
                continue
            if errors:
                self._found.remove((family, host))
                self._found.insert(0, (family, host))
            exchange.connected_ns = self._now()
            return connection
        raise errors[0]


def _drop(connection: Connection | None) -> None:
    if connection is not None:
        connection.abort()


def _status_class(status: int | None) -> str:
    if status is not None and 400 <= status < 500:
        return "http_4xx"
    return "http_5xx" if status is not None and status >= 500 else "protocol"


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _raise_file_limit() -> None:
    """One socket a request: the usual soft limit of 1,024 files would fail the published workload."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError):
            return  # the run goes on; a request without a socket is then a record that says so
