"""headrace's server and vLLM's, in turn under the same client on the same cores: the mixed requests, all at once.

    python benchmarks/peers/servers.py --model DIR [--vllm ENVIRONMENT] [--rounds 5] [--both-cores] [--json FILE]

Servers run with their defaults but for the settings that both get: 4,096 tokens at most, a budget of 512, 64 sequences,
no prefix cache.  They stay up over all rounds (vLLM takes minutes to start); the seconds of processor that the idle
one used are told, how long each took from its start to its first answer, and what memory it holds (more: startup.py).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from compare import BOTH_CORES, OURS, VLLM
from served import Server, started
from tasks import mixed
from turns import ratios, spread, take_turns

SETTINGS = (
    *("--max-model-len", "4096", "--max-num-batched-tokens", "512", "--max-num-seqs", "64"),
    "--no-enable-prefix-caching",
)
HEADRACE = (sys.executable, "-m", "headrace.cli.main")


def _turn(server: Server, others: Sequence[Server], scale: float) -> float:
    before = [other.cpu_s() for other in others]
    rate = server.send(mixed(scale=scale))
    for other, cpu_s in zip(others, before, strict=True):
        other.idle_cpu_s += other.cpu_s() - cpu_s
    return rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--vllm", type=Path, help="an environment with vLLM; without one headrace is measured alone")
    parser.add_argument("--vllm-dtype", default="auto")
    parser.add_argument("--both-cores", action="store_true", help="give vLLM both cores; it takes one by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="of the mixed requests' lengths, for slow machines")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    model = given.model.resolve()
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(started(OURS, model, HEADRACE, {}, SETTINGS))]
        if given.vllm:
            name = "vllm, both cores" if given.both_cores else "vllm"
            environ = VLLM | (BOTH_CORES if given.both_cores else {})
            program = (str(given.vllm / "bin/python"), str(given.vllm / "bin/vllm"))
            flags = (*SETTINGS, "--dtype", given.vllm_dtype)
            servers.append(stack.enter_context(started(name, model, program, environ, flags)))
        for server in servers:
            server.send(mixed(8, seed=3))
            print(f"{server.name}: first answer {server.first_answer_s:.1f} s after its start", flush=True)
        measures = {s.name: partial(_turn, s, [o for o in servers if o is not s], given.scale) for s in servers}
        rates = take_turns(measures, given.rounds, lambda line: print(f"  {line}", flush=True))
        for server in servers:
            values = rates[server.name]
            line = f"{server.name:20} {spread(values, 1):32} total tok/s; {server.memory_bytes() / 1e6:,.0f} MB held; "
            line += (
                f"idle it used {server.idle_cpu_s:.1f} s of processor; client {', '.join(sorted(set(server.clients)))}"
            )
            print(line, flush=True)
        if len(servers) > 1:
            print(f"{OURS} / {servers[1].name}: {spread(ratios(rates, OURS, servers[1].name))}", flush=True)
    if given.json:
        given.json.write_text(
            json.dumps({"rates": rates, "medians": {n: statistics.median(v) for n, v in rates.items()}})
        )


if __name__ == "__main__":
    main()
