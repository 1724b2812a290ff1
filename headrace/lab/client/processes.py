"""Client processes on this machine: started before the run, told one beginning, merged after it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from headrace.errors import LaunchError
from headrace.lab.client.load import Progress
from headrace.lab.client.shard import Job, Outcome, merge
from headrace.lab.files import write_durably

# Enough for every process to read its word and set a timer.
LEAD_NS = 200_000_000
_READY_S = 60.0


def run_in_processes(jobs: Sequence[Job], progress: Callable[[Progress], None] | None) -> Outcome:
    """Run the jobs at the same time, a process each.  Ctrl-C stops all of them and keeps what they measured.

    Raises LaunchError when one does not start or ends without an outcome.
    """
    with tempfile.TemporaryDirectory(prefix="headrace-client-") as name:
        directory = Path(name)
        workers = [_Worker(job, directory / str(number)) for number, job in enumerate(jobs)]
        try:
            for worker in workers:
                worker.wait_ready()
            start_ns = time.perf_counter_ns() + LEAD_NS
            for worker in workers:
                worker.tell(f"go {start_ns}")
            total = sum(1 + len(item.turns) for job in jobs for item in job.items)
            _watch(workers, total, start_ns, progress)
            return merge([worker.outcome() for worker in workers])
        finally:
            for worker in workers:
                worker.end()


def _watch(workers: Sequence[_Worker], total: int, start_ns: int, progress: Callable[[Progress], None] | None) -> None:
    def report() -> None:
        if progress is not None:
            issued, done, failed = (sum(column) for column in zip(*(worker.said for worker in workers), strict=True))
            progress(Progress(issued, done, failed, total, (time.perf_counter_ns() - start_ns) / 1e9))

    last_s = time.monotonic()
    while any(worker.running for worker in workers):
        try:
            time.sleep(0.02)
            if time.monotonic() - last_s >= 1.0:
                last_s = time.monotonic()
                report()
        except KeyboardInterrupt:
            for worker in workers:
                worker.tell("stop")
    report()


class _Worker:
    """One process; `said` is the last (issued, done, failed) that it reported."""

    def __init__(self, job: Job, place: Path) -> None:
        self._outcome = place.with_suffix(".outcome")
        job_path = place.with_suffix(".job")
        write_durably(job_path, job.to_json())
        job_path.chmod(0o600)  # headers may hold a key
        self.said = (0, 0, 0)
        self._ready = threading.Event()
        # A session of its own: Ctrl-C on the terminal reaches the parent, which tells all of them.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "headrace.lab.client.worker", str(job_path), str(self._outcome)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._listen, daemon=True)
        self._reader.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.strip() == "ready":
                self._ready.set()
            elif len(numbers := line.split()) == 3:
                self.said = (int(numbers[0]), int(numbers[1]), int(numbers[2]))
        self._ready.set()

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def wait_ready(self) -> None:
        if not self._ready.wait(_READY_S) or not self.running:
            raise LaunchError("a client process did not start", kind="client")

    def tell(self, word: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(word + "\n")
            self._process.stdin.flush()
        except OSError:
            return  # it has gone: its missing outcome says so

    def outcome(self) -> Outcome:
        self._reader.join(10)
        if not self._outcome.is_file():
            raise LaunchError(
                f"a client process ended with code {self._process.returncode} and left no result", kind="client"
            )
        return Outcome.from_json(self._outcome.read_text(encoding="utf-8"))

    def end(self) -> None:
        """Its parent is done with it; idempotent."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        if self.running:
            self._process.kill()
        self._process.wait()
