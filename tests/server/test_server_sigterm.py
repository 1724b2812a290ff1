"""SIGTERM and 100 streams: `headrace serve` as a user starts it, and no client is left without its end."""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from pathlib import Path

import pytest
from server_harness import in_loop_for
from server_process import ServerProcess, served_process

STREAMS = 100
BODY = json.dumps(
    {"prompt": "Water turns", "max_tokens": 1500, "ignore_eos": True, "stream": True, "temperature": 0}
).encode()
HEAD = (
    f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
)
FLAGS = ["--max-model-len", "2048", "--max-num-seqs", "48", "--kv-cache-memory-bytes", "64M"]
MARGIN_S = 15  # for a machine that does other things as well
LOOK_EVERY_S = 0.05


async def one_stream(server: ServerProcess, begun: asyncio.Queue[None]) -> str:
    """How a stream ended: finish, error, or what was wrong with its end."""
    reader, writer = await asyncio.open_connection(*server.address)
    try:
        writer.write(HEAD.encode() + BODY)
        events: list[str] = []
        status = await reader.readline()
        begun.put_nowait(None)
        async for line in reader:
            if line.startswith(b"data: "):
                events.append(line.decode().removeprefix("data: ").strip())
        if b" 200 " not in status:
            return f"status {status!r}"
        if not events or events[-1] != "[DONE]":
            return f"cut off after {events[-1:]}"
        last = json.loads(events[-2])
        if "error" in last:
            return "error" if last["error"]["code"] == "aborted" else f"error {last['error']}"
        reason = last["choices"][0]["finish_reason"]
        return "finish" if reason == "length" else f"finish {reason}"
    finally:
        writer.close()


async def endings(server: ServerProcess, *signals: signal.Signals) -> Counter[str]:
    """Send the signals when every stream has its headers; how the streams ended.  Two of a kind could become one."""
    begun: asyncio.Queue[None] = asyncio.Queue()
    streams = [asyncio.create_task(one_stream(server, begun)) for _ in range(STREAMS)]
    for _ in range(STREAMS):
        await begun.get()
    for each in signals:
        server.popen.send_signal(each)
    return Counter(await asyncio.gather(*streams))


async def exit_code(server: ServerProcess, within_s: float) -> int | None:
    """None when it still runs.  Counts looks and not seconds: while the machine stands still, the server does too."""
    for _ in range(round(within_s / LOOK_EVERY_S)):
        if (code := server.popen.poll()) is not None:
            return code
        await asyncio.sleep(LOOK_EVERY_S)
    return server.popen.poll()


@pytest.mark.slow
@pytest.mark.parametrize("run", range(10))
def test_every_stream_has_its_end_and_the_process_keeps_to_its_timeout(run: int, model_directory: Path) -> None:
    """Fewer seats than streams: some run, some have not begun.  None can end by itself in a second."""

    @in_loop_for(300)
    async def scenario() -> None:
        with served_process(model_directory, *FLAGS, "--shutdown-timeout", "1") as server:
            ends = await endings(server, signal.SIGTERM)
            assert set(ends) <= {"finish", "error"} and ends.total() == STREAMS, (ends, server.log[-5:])
            assert ends["error"] > 0
            assert await exit_code(server, MARGIN_S) == 0, server.log[-5:]

    scenario()


@pytest.mark.slow
@pytest.mark.parametrize("run", range(10))
def test_a_second_signal_does_not_wait(run: int, model_directory: Path) -> None:
    @in_loop_for(300)
    async def scenario() -> None:
        with served_process(model_directory, *FLAGS, "--shutdown-timeout", "600") as server:
            ends = await endings(server, signal.SIGTERM, signal.SIGINT)
            assert set(ends) <= {"finish", "error"} and ends.total() == STREAMS, (ends, server.log[-5:])
            assert ends["error"] > 0
            assert await exit_code(server, MARGIN_S) == 130, server.log[-5:]

    scenario()
