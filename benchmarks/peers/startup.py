"""From `headrace serve MODEL` to its first answer, and the memory it holds beyond weights and KV cache.

    python benchmarks/peers/startup.py --model DIR [--repeats 5] [--vllm ENVIRONMENT] [--flags ...]

The model's files are read before, so they are in the page cache.  The time ends with the last byte of a one-token
answer; it includes Python's start and everything that the server does by default (its probe too).  Memory is the
proportional set size of the process group, taken after a prompt that fills the KV cache, so that its pages and the
buffers of a step are there; weights and KV cache, as the start-up report gives them, are taken off.  The cache is small
(one sequence of 1,024 tokens): its rounding in the report would matter more than it does.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from pathlib import Path

from compare import BOTH_CORES, OURS, VLLM
from served import Server, started
from servers import HEADRACE

TOKENS, BLOCK = 1024, 16
FLAGS = ("--max-model-len", str(TOKENS), "--num-gpu-blocks-override", str(TOKENS // BLOCK + 1))
MOST_S, MOST_BYTES = 8.0, 600e6
HELD = re.compile(r"loaded in ([\d.]+) s: weights ([\d.]+) GiB .*?kv_cache ([\d.]+) GiB")


def read_all(directory: Path) -> int:
    """Bytes of the model's files, now in the page cache."""
    total = 0
    for path in sorted(directory.iterdir()):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while chunk := file.read(16 << 20):
                    total += len(chunk)
    return total


def beyond(server: Server) -> tuple[float, str]:
    """(bytes beyond weights and KV cache, the whole in words) of headrace, its KV cache filled once."""
    server.ask([3 + i % 15_000 for i in range(TOKENS - 1)])
    held = server.memory_bytes()
    found = HELD.search(server.said())
    if found is None:
        sys.exit(f"no line of the start-up report says what is held:\n{server.said()[-2000:]}")
    weights, kv = (float(found.group(i)) * 2**30 for i in (2, 3))
    words = f"{held / 1e6:,.0f} MB held, {weights / 1e6:,.0f} weights, {kv / 1e6:,.0f} KV cache; of the rest "
    words += f"{server.memory_bytes('Pss_File') / 1e6:,.0f} MB are mapped files; loaded in {found.group(1)} s"
    return held - weights - kv, words


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--vllm", type=Path, help="an environment with vLLM, started once beside it (minutes)")
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="more for headrace serve")
    given = parser.parse_args()
    model = given.model.resolve()
    print(f"{model.name}: {read_all(model) / 1e6:,.0f} MB of files read", flush=True)
    first, more = [], []
    for repeat in range(given.repeats):
        with started(OURS, model, HEADRACE, {}, (*FLAGS, *given.flags)) as server:
            extra, words = beyond(server)
        first.append(server.first_answer_s)
        more.append(extra)
        print(
            f"{repeat + 1}: ready after {server.ready_s:.2f} s, answered after {server.first_answer_s:.2f} s, "
            f"{extra / 1e6:,.0f} MB beyond weights and KV cache ({words})",
            flush=True,
        )
    seconds, size = statistics.median(first), statistics.median(more)
    spread_s = f"({min(first):.2f} to {max(first):.2f} s)"
    print(f"first answer: median {seconds:.2f} s {spread_s}, {_verdict(seconds, MOST_S, 's')}")
    spread_mb = f"({min(more) / 1e6:,.0f} to {max(more) / 1e6:,.0f} MB)"
    print(
        f"beyond weights and KV cache: {size / 1e6:,.0f} MB {spread_mb}, {_verdict(size / 1e6, MOST_BYTES / 1e6, 'MB')}"
    )
    if given.vllm:
        program = (str(given.vllm / "bin/python"), str(given.vllm / "bin/vllm"))
        with started("vllm", model, program, VLLM | BOTH_CORES, ("--max-model-len", str(TOKENS))) as server:
            print(f"vllm: answered after {server.first_answer_s:.1f} s, {server.memory_bytes() / 1e6:,.0f} MB held")


def _verdict(value: float, most: float, unit: str) -> str:
    return f"{'within' if value < most else 'BEYOND'} the target of {most:g} {unit}"


if __name__ == "__main__":
    main()
