"""HTTP/1.1 answers, as much as a client needs.  Pure: bytes in, values out; no socket, no clock."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from urllib.parse import urlsplit

from headrace.errors import ConfigError

MAX_HEAD_BYTES = 64 * 1024
_TOKEN = frozenset("!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")


class HttpError(ValueError):
    """The bytes are not an HTTP/1.1 answer."""


class Framing(Enum):
    """How the end of a body is known."""

    EMPTY = "empty"
    CHUNKED = "chunked"
    LENGTH = "length"
    CLOSE = "close"


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """Status line and headers; `length` counts with Framing.LENGTH, `keep_alive` says if the connection may be kept."""

    status: int
    reason: str
    content_type: str
    framing: Framing
    length: int
    keep_alive: bool


def parse_head(raw: bytes) -> ResponseHead:
    """From the bytes before the empty line (RFC 9112, sections 4 to 6).  Raises HttpError."""
    lines = raw.decode("latin-1").split("\r\n")
    version, _, rest = lines[0].partition(" ")
    code, _, reason = rest.partition(" ")
    if version not in ("HTTP/1.1", "HTTP/1.0") or len(code) != 3 or not code.isdecimal() or code < "100":
        raise HttpError(f"not an HTTP answer: {lines[0][:80]!r}")
    status = int(code)
    content_type, connection, encoding, length = "", "", "", -1
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        name, value = name.lower(), value.strip()
        if not colon or not name or name != name.strip():
            raise HttpError(f"not a header: {line[:80]!r}")
        if name == "content-type":
            content_type = value
        elif name == "connection":
            connection = value.lower()
        elif name == "transfer-encoding":
            encoding = f"{encoding},{value.lower()}" if encoding else value.lower()
        elif name == "content-length":
            if not (value.isascii() and value.isdecimal()) or length not in (-1, int(value)):
                raise HttpError(f"not a content length: {value[:80]!r}")
            length = int(value)
    keep_alive = "close" not in connection if version == "HTTP/1.1" else "keep-alive" in connection
    if status < 200 or status in (204, 304):
        framing = Framing.EMPTY
    elif encoding:
        if encoding.rpartition(",")[2].strip() != "chunked":
            raise HttpError(f"a transfer encoding that was not asked for: {encoding[:80]!r}")
        framing = Framing.CHUNKED
    elif length >= 0:
        framing = Framing.LENGTH if length else Framing.EMPTY
    else:
        framing, keep_alive = Framing.CLOSE, False
    return ResponseHead(status, reason, content_type, framing, max(length, 0), keep_alive)


class Dechunker:
    """Takes the chunked coding off (RFC 9112, section 7.1).  `done` once the last chunk and its trailers have come."""

    __slots__ = ("_left", "_pending", "_trailers", "done")

    def __init__(self) -> None:
        self._left = 0  # of the current chunk and the line end after it
        self._pending = b""  # an unfinished size or trailer line
        self._trailers = False
        self.done = False

    def feed(self, data: bytes) -> bytes:
        """The payload in these bytes.  Raises HttpError; so do bytes after the end."""
        if self._pending:
            data, self._pending = self._pending + data, b""
        parts: list[bytes] = []
        at, size = 0, len(data)
        while at < size:
            if self.done:
                raise HttpError("bytes after the end of a chunked body")
            if self._left > 2:
                payload = data[at : at + self._left - 2]
                parts.append(payload)
                self._left -= len(payload)
                at += len(payload)
                continue
            if self._left:  # the line end after the payload
                if data[at] != b"\r\n"[2 - self._left]:
                    raise HttpError("a chunk is longer than it says")
                self._left -= 1
                at += 1
                continue
            end = data.find(b"\r\n", at)
            if end < 0:
                self._pending = data[at:]
                if len(self._pending) > MAX_HEAD_BYTES:
                    raise HttpError("a chunk's size is longer than any number")
                break
            line = data[at:end]
            at = end + 2
            if self._trailers:
                self.done = not line
                continue
            try:
                length = int(line.partition(b";")[0], 16)
            except ValueError:
                length = -1
            if length < 0:
                raise HttpError(f"not the size of a chunk: {line[:40]!r}")
            if length:
                self._left = length + 2
            else:
                self._trailers = True
        return parts[0] if len(parts) == 1 else b"".join(parts)


@dataclass(frozen=True, slots=True)
class Address:
    """Where requests go: `tls` for https; `authority` is the Host header; `target` the path and query."""

    tls: bool
    host: str
    port: int
    authority: str
    target: str


def parse_address(url: str) -> Address:
    """Raises ConfigError for what is not an http or https address."""
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"the server's address must begin with http:// or https://, not {url!r}")
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").encode("idna").decode(), parts.port
    except ValueError as error:
        raise ConfigError(f"the server's address {url!r} is not an address ({error})") from None
    if not host or any(char <= " " or char == "\x7f" for char in url):
        raise ConfigError(f"the server's address {url!r} is not an address")
    tls = parts.scheme == "https"
    shown = f"[{host}]" if ":" in host else host
    authority = shown if port is None else f"{shown}:{port}"
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Address(tls, host, port or (443 if tls else 80), authority, target)


def header_lines(headers: dict[str, str]) -> str:
    """Header lines with their line ends.  Raises ConfigError for what cannot be sent."""
    for name, value in headers.items():
        if not name or not _TOKEN.issuperset(name) or any(char in value for char in "\r\n\0"):
            raise ConfigError(f"the header {name!r} cannot be sent as it is")
        try:
            value.encode("latin-1")
        except UnicodeEncodeError:
            raise ConfigError(f"the header {name!r} cannot be sent as it is") from None
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items())
