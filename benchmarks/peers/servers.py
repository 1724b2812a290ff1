"""headrace's server and vLLM's, in turn under the same client on the same cores: the mixed requests, all at once.

    python benchmarks/peers/servers.py --model DIR [--vllm ENVIRONMENT] [--rounds 5] [--both-cores] [--json FILE]

Servers run with their defaults but for the settings that both get: 4,096 tokens at most, a budget of 512, 64 sequences,
no prefix cache.  They stay up over all rounds (vLLM takes minutes to start); the seconds of processor that the idle
one used are told, and how long each took from its start to its first answer, and what memory it holds beyond its
weights and KV cache.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from compare import BOTH_CORES, OURS, VLLM
from tasks import Request, mixed, one
from turns import ratios, spread, take_turns

from headrace.lab.client import conduct
from headrace.lab.workload.samples import Sample, Workload
from headrace.lab.workload.spec import WorkloadSpec
from headrace.lab.workload.tokens import open_tokenizer

READY_TIMEOUT_S = 900.0
SETTINGS = ("--max-model-len", "4096", "--max-num-batched-tokens", "512", "--max-num-seqs", "64")
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Server:
    """A process group that serves `model` on a loopback port."""

    name: str
    model: Path
    process: subprocess.Popen[bytes]
    port: int
    started_s: float
    first_answer_s: float = 0.0
    idle_cpu_s: float = 0.0
    clients: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def send(self, requests: Sequence[Request]) -> float:
        """Total tok/s of the requests, sent together."""
        samples = tuple(Sample(i, tuple(ids), len(ids), output) for i, (ids, output) in enumerate(requests))
        spec = WorkloadSpec(num_prompts=len(samples), temperature=0.0, ignore_eos=True, tokenizer=str(self.model))
        tokenizer = open_tokenizer(spec.tokenizer, base_url=self.url, model=str(self.model), headers={})
        work = Workload(samples, (), tokenizer.name, 1.0)
        run = conduct(self.url, spec, work, model=str(self.model), tokenizer=tokenizer)
        answered = sum(record.output_tokens_server or 0 for record in run.records)
        expected = sum(output for _, output in requests)
        if answered != expected:
            sys.exit(f"{self.name} answered {answered} tokens instead of {expected}")
        self.clients.append(run.verdict.level)
        return (sum(len(ids) for ids, _ in requests) + answered) / run.duration_s

    def group(self) -> list[int]:
        """The server's processes."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                if entry.name.isdigit() and os.getpgid(int(entry.name)) == self.process.pid:
                    found.append(int(entry.name))
        return found

    def cpu_s(self) -> float:
        total = 0
        for pid in self.group():
            with contextlib.suppress(OSError):
                values = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                total += int(values[11]) + int(values[12])
        return total / TICKS

    def memory_bytes(self) -> int:
        """Proportional set size: pages that its processes share count once, mapped files while in memory."""
        total = 0
        for pid in self.group():
            with contextlib.suppress(OSError):
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                total += sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
        return total

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@contextlib.contextmanager
def started(
    name: str, model: Path, program: Sequence[str], environ: Mapping[str, str], flags: Sequence[str] = ()
) -> Iterator[Server]:
    """A server that has given its first answer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [*program, "serve", str(model), "--host", "127.0.0.1", "--port", str(port), *SETTINGS]
    with tempfile.TemporaryFile() as log:
        begin = time.monotonic()
        process = subprocess.Popen(
            [*command, "--no-enable-prefix-caching", *flags],
            stdout=log,
            stderr=log,
            env={**os.environ, **environ},
            start_new_session=True,
        )
        server = Server(name, model, process, port, begin)
        try:
            while not _answers(server):
                if process.poll() is not None or time.monotonic() - begin > READY_TIMEOUT_S:
                    log.seek(0)
                    sys.exit(f"{name} did not start\n" + log.read().decode(errors="replace")[-3000:])
                time.sleep(0.05)
            server.send(one(16, 1))
            server.first_answer_s = time.monotonic() - begin
            yield server
        finally:
            server.stop()


def _answers(server: Server) -> bool:
    try:
        with urllib.request.urlopen(server.url + "/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


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
        servers = [stack.enter_context(started(OURS, model, (sys.executable, "-m", "headrace.cli.main"), {}))]
        if given.vllm:
            name = "vllm, both cores" if given.both_cores else "vllm"
            environ = VLLM | (BOTH_CORES if given.both_cores else {})
            program = (str(given.vllm / "bin/python"), str(given.vllm / "bin/vllm"))
            servers.append(stack.enter_context(started(name, model, program, environ, ("--dtype", given.vllm_dtype))))
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
