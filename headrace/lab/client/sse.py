"""Server-sent events: bytes in any pieces -> messages.  Pure: no socket, no clock."""

from __future__ import annotations

from dataclasses import dataclass

# A server that never ends its line must not fill our memory.
MAX_MESSAGE_BYTES = 64 * 1024 * 1024


class SSEError(ValueError):
    """The bytes cannot be server-sent events."""


@dataclass(frozen=True, slots=True)
class SSEMessage:
    """`data` is the joined data lines, undecoded; `event` is empty for the usual unnamed messages."""

    data: bytes
    event: bytes = b""


class SSEParser:
    """Feed it what each read returned, get the messages which that read completed.

    Lines end in LF, CRLF or CR; a read may split anywhere, also inside a CRLF or a multi-byte character; lines that
    begin with a colon are comments (keep-alives).  https://html.spec.whatwg.org/multipage/server-sent-events.html
    """

    __slots__ = ("_after_cr", "_data", "_event", "_first", "_rest")

    def __init__(self) -> None:
        self._rest = b""  # an unfinished line
        self._after_cr = False  # the last line ended in CR: an LF that follows belongs to it
        self._first = True  # a byte order mark may precede the first line
        self._data: list[bytes] = []
        self._event = b""

    def feed(self, piece: bytes) -> list[SSEMessage]:
        if not piece:
            return []
        if self._after_cr and piece.startswith(b"\n"):
            piece = piece[1:]
        if not piece:
            self._after_cr = False
            return []
        self._after_cr = piece.endswith(b"\r")
        buffered = self._rest + piece
        if len(buffered) > MAX_MESSAGE_BYTES:
            raise SSEError(f"a line is longer than {MAX_MESSAGE_BYTES} bytes")
        lines = buffered.splitlines()  # bytes split at CR, LF and CRLF only
        self._rest = b"" if buffered.endswith((b"\n", b"\r")) else lines.pop()
        messages: list[SSEMessage] = []
        for line in lines:
            self._line(line, messages)
        return messages

    def close(self) -> list[SSEMessage]:
        """What the end of the body leaves: a last message without its blank line, as some servers send it."""
        messages: list[SSEMessage] = []
        if self._rest:
            self._line(self._rest, messages)
            self._rest = b""
        self._line(b"", messages)
        return messages

    def _line(self, line: bytes, messages: list[SSEMessage]) -> None:
        if self._first:
            line = line.removeprefix(b"\xef\xbb\xbf")
            self._first = False
        if not line:
            if self._data:
                messages.append(SSEMessage(b"\n".join(self._data), self._event))
                self._data = []
            self._event = b""
            return
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._event = value
