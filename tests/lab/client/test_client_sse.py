"""Server-sent events arrive in any pieces and mean the same."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.lab.client.sse import SSEMessage, SSEParser

NASTY = (
    "\ufeff: a comment\n"
    'data: {"text": "größe 🚀   fifteen spaces               "}\r\n'
    "\r\n"
    ":\n\n"
    "event: error\rdata: first\rdata:second\r\r"
    "id: 7\nretry: 10\ndata\n\n"
    "data: [DONE]\n\n"
).encode()

MEANING = [
    SSEMessage('{"text": "größe 🚀   fifteen spaces               "}'.encode()),
    SSEMessage(b"first\nsecond", b"error"),
    SSEMessage(b""),
    SSEMessage(b"[DONE]"),
]


def parse(pieces: list[bytes]) -> list[SSEMessage]:
    parser = SSEParser()
    return [message for piece in pieces for message in parser.feed(piece)] + parser.close()


def test_a_stream_in_one_piece() -> None:
    assert parse([NASTY]) == MEANING


def test_one_byte_at_a_time() -> None:
    assert parse([NASTY[i : i + 1] for i in range(len(NASTY))]) == MEANING


@pytest.mark.parametrize("at", range(len(NASTY) + 1))
def test_split_anywhere_also_inside_a_character_or_a_crlf(at: int) -> None:
    assert parse([NASTY[:at], NASTY[at:]]) == MEANING


@given(st.lists(st.integers(0, len(NASTY)), max_size=12))
def test_split_into_many_pieces(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(NASTY)]
    assert parse([NASTY[a:b] for a, b in pairwise(edges)]) == MEANING


def test_a_message_is_delivered_with_the_read_that_completes_it() -> None:
    parser = SSEParser()
    assert parser.feed(b"data: x\n") == []
    assert parser.feed(b"\n") == [SSEMessage(b"x")]


def test_a_last_message_without_its_blank_line_is_kept() -> None:
    assert parse([b"data: [DONE]"]) == [SSEMessage(b"[DONE]")]


def test_captured_streams_mean_the_same_however_they_are_cut(shared_data: Path) -> None:
    captures = sorted((shared_data / "sse-streams" / "raw").rglob("*.sse"))
    assert captures
    for path in captures:
        body = path.read_bytes()
        whole = parse([body])
        assert whole, path
        assert parse([body[i : i + 7] for i in range(0, len(body), 7)]) == whole, path
