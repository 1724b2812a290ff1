"""A server as a process group on a loopback port: started and asked, its memory and processor time, stopped."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from tasks import Request

from headrace.lab.client import conduct
from headrace.lab.procfs import cpu_s, pids
from headrace.lab.workload.samples import Sample, Workload
from headrace.lab.workload.spec import WorkloadSpec
from headrace.lab.workload.tokens import open_tokenizer

READY_TIMEOUT_S = 900.0
POLL_S = 0.1  # each poll takes processor time from the server that loads


@dataclass(slots=True)
class Server:
    """A process group that serves `model` on a loopback port.

    ready_s, first_answer_s   from its start to a 200 of /health, and to the end of its first answer
    """

    name: str
    model: Path
    process: subprocess.Popen[bytes]
    port: int
    log: IO[bytes]
    ready_s: float = 0.0
    first_answer_s: float = 0.0
    idle_cpu_s: float = 0.0
    clients: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def said(self) -> str:
        """Its output so far."""
        self.log.seek(0)
        return self.log.read().decode(errors="replace")

    def ask(self, prompt: Sequence[int], output_tokens: int = 1) -> None:
        """One plain request; raises OSError when it fails."""
        body = {"model": str(self.model), "prompt": list(prompt), "max_tokens": output_tokens, "temperature": 0}
        request = urllib.request.Request(
            f"{self.url}/v1/completions",
            json.dumps(body | {"ignore_eos": True}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=READY_TIMEOUT_S) as answer:
            answer.read()

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
        for pid in pids():
            with contextlib.suppress(OSError):
                if os.getpgid(pid) == self.process.pid:
                    found.append(pid)
        return found

    def cpu_s(self) -> float:
        return sum(map(cpu_s, self.group()))

    def memory_bytes(self, kind: str = "Pss") -> int:
        """Proportional set size: pages that its processes share count once, mapped files while in memory.

        `kind`: Pss, or a part of it: Pss_Anon, Pss_File, Pss_Shmem.
        """
        total = 0
        for pid in self.group():
            with contextlib.suppress(OSError):
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                total += sum(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{kind}:"))
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
    """`program serve model flags`, once it has given its first answer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [*program, "serve", str(model), "--host", "127.0.0.1", "--port", str(port), *flags]
    with tempfile.TemporaryFile() as log:
        begin = time.monotonic()
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, **environ}, start_new_session=True
        )
        server = Server(name, model, process, port, log)
        try:
            while not _is_ready(server):
                if process.poll() is not None or time.monotonic() - begin > READY_TIMEOUT_S:
                    sys.exit(f"{name} did not start\n{server.said()[-3000:]}")
                time.sleep(POLL_S)
            server.ready_s = time.monotonic() - begin
            server.ask(range(3, 19))
            server.first_answer_s = time.monotonic() - begin
            yield server
        finally:
            server.stop()


def _is_ready(server: Server) -> bool:
    try:
        with urllib.request.urlopen(server.url + "/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
