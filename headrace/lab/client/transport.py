"""One streaming POST over a kept connection: stamps what happened, parses nothing, raises nothing but cancellation."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import aiohttp

from headrace.clock import Clock
from headrace.errors import ConfigError

# aiohttp's 64 KiB makes a burst wait for the client (measured by others: 1.3 s of TTFT became 134 s); 10 MiB does not.
READ_BUFFER_BYTES = 10 * 1024 * 1024
MAX_ERROR_BODY_BYTES = 8 * 1024


@dataclass(slots=True)
class Exchange:
    """What happened to one request on the wire: times of the transport's clock, error_class as in RequestRecord."""

    sent_ns: int = 0
    headers_ns: int | None = None
    done_ns: int = 0
    status: int | None = None
    content_type: str = ""
    reads: list[tuple[int, bytes]] = field(default_factory=list)
    bytes_read: int = 0
    new_connection: bool = False
    error_class: str | None = None
    error: str | None = None

    @property
    def ok(self) -> bool:
        return self.error_class is None


class HttpTransport:
    """An aiohttp session without a connection limit.  Use as an async context manager.

    Proxies in the environment are not used: the proxy would be what is measured.
    """

    def __init__(self, url: str, *, headers: Mapping[str, str], timeout_s: float, clock: Clock) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"the server's address must begin with http:// or https://, not {url!r}")
        self._url = url
        self._headers = {"Content-Type": "application/json", "Accept-Encoding": "identity", **headers}
        self._timeout_s = timeout_s
        self._clock = clock
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> HttpTransport:
        _raise_file_limit()
        trace = aiohttp.TraceConfig()
        trace.on_connection_create_end.append(_note_new_connection)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60, ttl_dns_cache=300),
            timeout=aiohttp.ClientTimeout(total=self._timeout_s, connect=None, sock_connect=None, sock_read=None),
            read_bufsize=READ_BUFFER_BYTES,
            headers=self._headers,
            trace_configs=[trace],
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def post(self, body: bytes, exchange: Exchange) -> None:
        """Send `body` and fill `exchange` until the answer ends or fails.  Cancellation is noted and passed on."""
        assert self._session is not None, "the transport is used inside `async with`"
        now = self._clock.now_ns
        exchange.sent_ns = now()
        try:
            async with self._session.post(self._url, data=body, trace_request_ctx=exchange) as response:
                exchange.headers_ns = now()
                exchange.status = response.status
                exchange.content_type = response.headers.get("Content-Type", "")
                if response.status == 200:
                    reads, readany = exchange.reads, response.content.readany
                    while piece := await readany():
                        reads.append((now(), piece))
                        exchange.bytes_read += len(piece)
                else:
                    text = (await response.content.read(MAX_ERROR_BODY_BYTES)).decode("utf-8", "replace")
                    _fail(exchange, _status_class(response.status), text or str(response.reason))
                exchange.done_ns = now()
        except asyncio.CancelledError:
            exchange.done_ns = now()
            _fail(exchange, "cancelled", "cancelled by the client")
            raise
        except TimeoutError:
            exchange.done_ns = now()
            _fail(exchange, "timeout", f"no end of the answer within {self._timeout_s:g} s")
        except aiohttp.ClientConnectorError as error:
            exchange.done_ns = now()
            _fail(exchange, "refused", str(error))
        except (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError, ConnectionError) as error:
            exchange.done_ns = now()
            where = "before" if exchange.headers_ns is None else "in the middle of"
            _fail(exchange, "disconnected", f"the connection was lost {where} the answer ({_words(error)})")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            exchange.done_ns = now()
            _fail(exchange, "refused" if isinstance(error, OSError) else "protocol", _words(error))


async def _note_new_connection(_session: Any, context: Any, _params: Any) -> None:
    context.trace_request_ctx.new_connection = True


def _fail(exchange: Exchange, error_class: str, error: str) -> None:
    exchange.error_class = error_class
    exchange.error = error


def _status_class(status: int) -> str:
    if 400 <= status < 500:
        return "http_4xx"
    return "http_5xx" if status >= 500 else "protocol"


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
