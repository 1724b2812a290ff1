"""Bytes that no HTTP library would send: the server answers 4xx or closes, and serves the next request."""

from __future__ import annotations

import asyncio
import json
import random

from fake_engine import ScriptedEngine
from server_harness import Served, in_loop, serving

BODY = json.dumps({"prompt": "Hi", "max_tokens": 2}).encode()
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
LENGTH = b"Content-Length: %d\r\n"
GOOD = HEAD + LENGTH % len(BODY) + b"Connection: close\r\n\r\n" + BODY

MALFORMED = {
    "nothing": b"",
    "half a request line": b"POST /v1/comp",
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "null bytes": b"\x00" * 100,
    "unknown version": b"GET /health HTTP/9.9\r\n\r\n",
    "no host": b"GET /v1/models HTTP/1.1\r\n\r\n",
    "huge header": b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
    "many headers": b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"X: a\r\n" * 20_000 + b"\r\n",
    "huge path": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "bad escape in the path": b"GET /v1/models/%zz%ff%00 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    "negative length": HEAD + b"Content-Length: -5\r\n\r\n" + BODY,
    "no number as length": HEAD + b"Content-Length: ten\r\n\r\n" + BODY,
    "enormous length": HEAD + b"Content-Length: " + b"9" * 4000 + b"\r\n\r\n" + BODY,
    "two lengths": HEAD + LENGTH % len(BODY) + LENGTH % 3 + b"\r\n" + BODY,
    "length and chunks": HEAD + LENGTH % 3 + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "length too short": HEAD + LENGTH % (len(BODY) - 5) + b"Connection: close\r\n\r\n" + BODY,
    "body cut off": HEAD + LENGTH % (len(BODY) + 50) + b"\r\n" + BODY,
    "chunk size no number": HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + BODY,
    "chunks cut off": HEAD + b"Transfer-Encoding: chunked\r\n\r\nff\r\n" + BODY,
    "line break in a header": HEAD + b"Authorization: Bearer a\r\n b\r\n" + LENGTH % len(BODY) + b"\r\n" + BODY,
    "upgrade": b"GET /v1/models HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    "unknown method": b"BREW /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    "half closed after the headers": HEAD + LENGTH % len(BODY) + b"\r\n",
}


async def exchange(served: Served, data: bytes, *, half_close: bool = False) -> bytes:
    """Send and read what comes.  A server that waits for the rest of a request never closes: reading gives up."""
    host, port = served.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    answer = b""
    try:
        writer.write(data)
        await writer.drain()
        if half_close:
            writer.write_eof()
        async with asyncio.timeout(2):
            while block := await reader.read(65536):
                answer += block
    except (TimeoutError, ConnectionError):
        pass
    finally:
        writer.close()
    return answer


def statuses(answer: bytes) -> list[int]:
    return [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:] if part[:3].isdigit()]


@in_loop
async def test_malformed_requests_are_a_4xx_or_a_closed_connection() -> None:
    engine = ScriptedEngine()
    async with serving(engine) as served:
        assert statuses(await exchange(served, GOOD)) == [200]
        names = [(name, half_close) for name in MALFORMED for half_close in (False, True)]
        answers = await asyncio.gather(*[exchange(served, MALFORMED[name], half_close=half) for name, half in names])
        for (name, _), answer in zip(names, answers, strict=True):
            assert all(status < 500 for status in statuses(answer)), name
        assert sum(400 in statuses(answer) for answer in answers) > 10, "most of them get an answer"
        assert statuses(await exchange(served, GOOD)) == [200]
        assert engine.stats().num_running == 0
        assert (await served.http.get("/load")).json() == {"server_load": 0}


@in_loop
async def test_random_damage_to_a_good_request_is_never_a_5xx() -> None:
    generator = random.Random(2)
    damaged = []
    for _ in range(300):
        data = bytearray(GOOD)
        for _ in range(generator.randint(1, 4)):
            at = generator.randrange(len(data))
            data[at : at + generator.randint(0, 3)] = generator.randbytes(generator.randint(0, 3))
        damaged.append(bytes(data))
    async with serving(ScriptedEngine()) as served:
        answers = await asyncio.gather(*[exchange(served, data) for data in damaged])
        seen = [statuses(answer) for answer in answers]
        assert all(status < 500 for found in seen for status in found), seen
        assert [400] in seen and [200] in seen
        assert statuses(await exchange(served, GOOD)) == [200]
