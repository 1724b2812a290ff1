"""HTTP answers as bytes: whatever a read splits, the payload is the same; what is no HTTP is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import ConfigError
from headrace.lab.client.http1 import Dechunker, Framing, HttpError, header_lines, parse_address, parse_head


def chunked(*payloads: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(payload), payload) for payload in payloads) + end


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=5), st.lists(st.integers(1, 20), min_size=1))
def test_a_chunked_body_may_be_split_anywhere(payloads: list[bytes], sizes: list[int]) -> None:
    body, coding, found = chunked(*payloads), Dechunker(), b""
    at = 0
    while at < len(body):
        size = sizes[at % len(sizes)]
        found += coding.feed(body[at : at + size])
        at += size
    assert coding.done and found == b"".join(payloads)


def test_extensions_and_trailers_end_a_body_as_well() -> None:
    coding = Dechunker()
    assert coding.feed(b"3;x=1\r\nabc\r\n000\r\nServer-Timing: total\r\n\r\n") == b"abc" and coding.done


@pytest.mark.parametrize("raw", [b"zz\r\nabc\r\n", b"-3\r\nabc\r\n", b"3\r\nabcd\r\n", b"0\r\n\r\nmore"])
def test_a_broken_coding_is_named(raw: bytes) -> None:
    with pytest.raises(HttpError):
        Dechunker().feed(raw)


@pytest.mark.parametrize(
    ("head", "framing", "length", "kept"),
    [
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5", Framing.CHUNKED, 5, True),
        ("HTTP/1.1 200 OK\r\ncontent-length: 12", Framing.LENGTH, 12, True),
        ("HTTP/1.1 200 OK\r\nContent-Length: 12\r\nConnection: close", Framing.LENGTH, 12, False),
        ("HTTP/1.0 200 OK\r\nContent-Length: 12", Framing.LENGTH, 12, False),
        ("HTTP/1.1 200 OK", Framing.CLOSE, 0, False),
        ("HTTP/1.1 204 No Content", Framing.EMPTY, 0, True),
    ],
)
def test_how_the_end_of_a_body_is_known(head: str, framing: Framing, length: int, kept: bool) -> None:
    found = parse_head(head.encode())
    assert (found.framing, found.length, found.keep_alive) == (framing, length, kept)


@pytest.mark.parametrize(
    "head",
    [
        "SSH-2.0-OpenSSH",
        "HTTP/2 200",
        "HTTP/1.1 20 OK",
        "HTTP/1.1 200 OK\r\nno colon",
        "HTTP/1.1 200 OK\r\nContent-Length: -1",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip",
    ],
)
def test_what_is_no_answer_is_refused(head: str) -> None:
    with pytest.raises(HttpError):
        parse_head(head.encode())


def test_addresses() -> None:
    there = parse_address("https://[::1]:8443/v1/completions?a=b")
    assert (there.tls, there.host, there.port, there.target) == (True, "::1", 8443, "/v1/completions?a=b")
    assert there.authority == "[::1]:8443"
    with pytest.raises(ConfigError, match="cannot be sent"):
        header_lines({"X": "a\r\nY: b"})
