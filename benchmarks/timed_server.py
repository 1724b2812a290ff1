"""A server whose timing is known: it streams by a script and writes down when it wrote what.

    python benchmarks/timed_server.py LOG [--no-errors]    prints its port; LOG is written when its standard input ends

Request i (in the order of arrival) waits 40 to 400 ms, then sends 24 tokens 8 to 30 ms apart.  Chat answers begin with
a role chunk at once.  A third of all answers comes in bundles of three tokens, a quarter begins with reasoning, every
25th breaks off with an error event.  From 5 to 6 s after the first request, and every 10 s after that, the server
stands still: it reads, writes and answers nothing.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from pathlib import Path

TOKENS = 24
STALL_EVERY_S, STALL_AT_S, STALL_S = 10.0, 5.0, 1.0
WORD = " wave"


class TimedServer:
    def __init__(self) -> None:
        self.rows: list[dict[str, object]] = []
        self._first_ns: int | None = None

    async def serve(self, log: Path) -> None:
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0, backlog=2048)
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        log.write_text(json.dumps(self.rows))

    async def _pause(self, seconds: float) -> None:
        """Sleep, and through a stall when it falls in one: nothing happens while the server stands still."""
        due_ns = time.perf_counter_ns() + round(seconds * 1e9)
        while (left := due_ns - time.perf_counter_ns()) > 0:
            await asyncio.sleep(left / 1e9)
        if self._first_ns is not None:
            since = (time.perf_counter_ns() - self._first_ns) / 1e9
            into = (since - STALL_AT_S) % STALL_EVERY_S
            if since >= STALL_AT_S and into < STALL_S:
                await asyncio.sleep(STALL_S - into)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                length = next((int(x[15:]) for x in head.lower().split("\r\n") if x.startswith("content-length:")), 0)
                body = json.loads(await reader.readexactly(length)) if length else {}
                await self._answer(head.split(" ")[1], body, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            writer.close()

    async def _answer(self, path: str, body: dict[str, object], writer: asyncio.StreamWriter) -> None:
        if "completions" not in path:
            models = {"object": "list", "data": [{"id": "timed", "object": "model", "max_model_len": 4096}]}
            data = json.dumps(models if "models" in path else {}).encode()
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(data), data)
            )
            return
        now = time.perf_counter_ns
        row: dict[str, object] = {"arrived_ns": now(), "failed": False}
        if self._first_ns is None:
            self._first_ns = now()
        index = len(self.rows)
        self.rows.append(row)
        rng = random.Random(index)
        chat = "chat" in path
        wait_s, bundle = 0.04 + 0.36 * rng.random() ** 2, 3 if index % 3 == 2 else 1
        reasoning, breaks = chat and index % 4 == 1, index % 25 == 24 and "--no-errors" not in sys.argv
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        await self._pause(0)
        if chat:
            self._event(writer, [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
        await self._pause(wait_s)
        stamps: list[int] = []
        for number in range(0, TOKENS, bundle):
            if number:
                await self._pause(0.008 + 0.022 * rng.random())
            if breaks and number >= TOKENS // 2:
                self._send(writer, 'data: {"error": {"message": "out of memory", "code": 500}}\n\n')
                writer.write(b"0\r\n\r\n")
                row["failed"] = True
                break
            text = WORD * bundle
            if chat:
                delta = {"reasoning_content": text} if reasoning and number < 6 else {"content": text}
                choice: dict[str, object] = {"index": 0, "delta": delta, "finish_reason": None}
            else:
                choice = {"index": 0, "text": text, "finish_reason": None}
            stamps.append(now())
            self._event(writer, [choice])
        row |= {"stamps_ns": stamps, "tokens": TOKENS}
        if not row["failed"]:
            done = {"index": 0, "finish_reason": "length", **({"delta": {}} if chat else {"text": ""})}
            self._event(writer, [done])
            usage = {"prompt_tokens": 16, "completion_tokens": TOKENS, "total_tokens": 16 + TOKENS}
            message = json.dumps({"id": "timed", "object": "chunk", "choices": [], "usage": usage})
            self._send(writer, f"data: {message}\n\ndata: [DONE]\n\n")
            writer.write(b"0\r\n\r\n")

    def _event(self, writer: asyncio.StreamWriter, choices: list[dict[str, object]]) -> None:
        message = {"id": "timed", "object": "chunk", "created": 1, "model": "timed", "choices": choices}
        self._send(writer, f"data: {json.dumps(message)}\n\n")

    def _send(self, writer: asyncio.StreamWriter, text: str) -> None:
        data = text.encode()
        writer.write(b"%x\r\n%s\r\n" % (len(data), data))


if __name__ == "__main__":
    asyncio.run(TimedServer().serve(Path(sys.argv[1])))
