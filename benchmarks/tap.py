"""A relay on loopback that notes when a server's events passed: what was true of a client's run on a real engine.

python benchmarks/tap.py LOG PORT    prints its own port; LOG is written when its standard input ends
"""

from __future__ import annotations

import asyncio
import bisect
import json
import re
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import TypedDict

import numpy as np

Noted = list[tuple[int, bytes]]  # when a read ended (ns) and what it gave
EVENT = re.compile(rb"data: (\{.*?\})\r?\n")


class Tap:
    """Relays connections; bytes are only kept while they pass, and read when all is over."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connections: list[tuple[Noted, Noted]] = []

    async def serve(self, log: Path) -> None:
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0, backlog=2048)
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        log.write_text(json.dumps([row for up, down in self._connections for row in answers(up, down)]))

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self._port)
        up: Noted = []
        down: Noted = []
        self._connections.append((up, down))
        await asyncio.gather(self._relay(reader, to_server, up), self._relay(from_server, writer, down))

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, noted: Noted) -> None:
        try:
            while data := await reader.read(1 << 16):
                noted.append((time.perf_counter_ns(), data))
                writer.write(data)
            writer.write_eof()
        except (ConnectionError, RuntimeError):
            writer.close()


class Answer(TypedDict):
    """One streamed completion: when its request came, when its events with choices passed (ns), and its usage."""

    sent_ns: int
    stamps_ns: list[int]
    usage: dict[str, int]


def answers(up: Noted, down: Noted) -> list[Answer]:
    """One connection's streamed completions, in order: a client sends its next request when it has the last answer."""
    sent = [at for at, data in up if data.startswith(b"POST ") and b"completions" in data[:200]]
    rows: list[Answer] = [{"sent_ns": at, "stamps_ns": [], "usage": {}} for at in sent]
    ends = np.cumsum([len(data) for _, data in down])
    for event in EVENT.finditer(b"".join(data for _, data in down)):
        at = down[int(np.searchsorted(ends, event.end()))][0]
        message = json.loads(event[1])
        row = rows[bisect.bisect(sent, at) - 1]
        if message.get("choices"):
            row["stamps_ns"].append(at)
        elif "usage" in message:
            row["usage"] = message["usage"]
    return rows


def vllm_figures(rows: list[Answer]) -> dict[str, float]:
    """The figures of vLLM's result file, by its client's definitions (0.32, `endpoint_request_func.py`, `serve.py`).

    Written out again, not taken from `lab.metrics.definitions`: that is part of what is judged.
    """
    rows = [row for row in rows if row["stamps_ns"]]
    stamps = [np.array([row["sent_ns"], *row["stamps_ns"]]) / 1e6 for row in rows]
    tokens = [row["usage"]["completion_tokens"] for row in rows]
    seconds = (max(each[-1] for each in stamps) - min(each[0] for each in stamps)) / 1e3
    samples = {
        "ttft": [each[1] - each[0] for each in stamps],
        "tpot": [(each[-1] - each[1]) / (count - 1) for each, count in zip(stamps, tokens, strict=True)],
        "itl": [after - before for each in stamps for before, after in pairwise(each[1:])],
        "e2el": [each[-1] - each[0] for each in stamps],
    }
    figures: dict[str, float] = {
        "completed": len(rows),
        "total_input_tokens": sum(row["usage"]["prompt_tokens"] for row in rows),
        "total_output_tokens": sum(tokens),
        "duration": seconds,
        "request_throughput": len(rows) / seconds,
        "output_throughput": sum(tokens) / seconds,
    }
    for name, values in samples.items():
        figures |= {f"mean_{name}_ms": float(np.mean(values)), f"median_{name}_ms": float(np.median(values))}
        figures[f"p90_{name}_ms"] = float(np.percentile(values, 90))
    return figures


if __name__ == "__main__":
    asyncio.run(Tap(int(sys.argv[2])).serve(Path(sys.argv[1])))
