"""A server that answers from a script, over real loopback sockets: the instrument is tested against a known truth."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any


@dataclass(frozen=True)
class Answer:
    """What to send back.  `pieces` are written and flushed one by one; `abort` then drops the connection;
    `hang` sends nothing and waits for the client to give up."""

    pieces: tuple[bytes, ...] = ()
    status: int = 200
    content_type: str = "text/event-stream"
    abort: bool = False
    hang: bool = False


@dataclass
class Seen:
    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any] | None
    connection: int


Script = Callable[[Seen], Answer]


def data(message: object) -> bytes:
    text = message if isinstance(message, str) else json.dumps(message, ensure_ascii=False)
    return f"data: {text}\n\n".encode()


def completion(texts: list[str], *, prompt_tokens: int = 5, finish: str = "length") -> Answer:
    """A usual stream of /v1/completions: one message a text, usage alone, [DONE]."""
    pieces = [data({"choices": [{"index": 0, "text": text, "finish_reason": None}]}) for text in texts[:-1]]
    pieces.append(data({"choices": [{"index": 0, "text": texts[-1], "finish_reason": finish}]}))
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": len(texts)}
    return Answer((*pieces, data({"choices": [], "usage": usage}), data("[DONE]")))


def as_json(body: object, status: int = 200) -> Answer:
    return Answer((json.dumps(body).encode(),), status, "application/json")


def model_server(seen: Seen) -> Answer:
    """A small server: a tokenizer of one token a character, answers of exactly `max_tokens` messages."""
    body = seen.body or {}
    if seen.path == "/v1/models":
        return as_json({"data": [{"id": "tiny"}]})
    if seen.path == "/tokenize":
        ids = [ord(c) for c in body["prompt"]]
        return as_json({"tokens": ids, "count": len(ids)})
    if seen.path == "/detokenize":
        return as_json({"prompt": "".join(map(chr, body["tokens"]))})
    if seen.path == "/v1/completions":
        return completion(["x"] * body["max_tokens"], prompt_tokens=len(body["prompt"]))
    if seen.path == "/v1/chat/completions":
        pieces = [data({"choices": [{"delta": {"role": "assistant", "content": ""}}]})]
        pieces += [data({"choices": [{"delta": {"content": "y"}}]}) for _ in range(body["max_completion_tokens"])]
        pieces.append(data({"choices": [{"delta": {}, "finish_reason": "length"}]}))
        usage = {"prompt_tokens": 9, "completion_tokens": body["max_completion_tokens"]}
        return Answer((*pieces, data({"choices": [], "usage": usage}), data("[DONE]")))
    return as_json({"error": {"message": f"no route {seen.path}"}}, 404)


@dataclass
class ScriptedServer:
    """`with ScriptedServer(script) as server:` listens on a free port; `server.seen` holds every request."""

    script: Script = model_server
    seen: list[Seen] = field(default_factory=list)
    url: str = ""

    def __enter__(self) -> ScriptedServer:
        self._loop = asyncio.new_event_loop()
        self._connections = 0
        started = threading.Event()

        async def start() -> None:
            self._server = await asyncio.start_server(self._connection, "127.0.0.1", 0, backlog=2048)
            self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
            started.set()

        def run() -> None:
            self._loop.create_task(start())
            self._loop.run_forever()

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        assert started.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        async def stop() -> None:
            self._server.close()
            others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def completions(self) -> list[dict[str, Any]]:
        """Bodies of the generation requests, in the order of their arrival."""
        return [seen.body for seen in self.seen if "completions" in seen.path and seen.body is not None]

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        connection = self._connections
        try:
            while await self._request(reader, writer, connection):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: int) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:] if line)}
        raw = await reader.readexactly(int(headers.get("content-length", "0")))
        seen = Seen(method, path, headers, json.loads(raw) if raw else None, connection)
        self.seen.append(seen)
        answer = self.script(seen)
        if answer.hang:
            await reader.read()
            return False
        lines = [f"HTTP/1.1 {answer.status} Scripted", f"Content-Type: {answer.content_type}"]
        writer.write(("\r\n".join([*lines, "Transfer-Encoding: chunked"]) + "\r\n\r\n").encode())
        for piece in answer.pieces:
            writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            await writer.drain()
        if answer.abort:
            return False
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True
