"""One server's life in a campaign: started, measured once or several times, stopped; what it left is in a directory.

DIR/server.log, server-info.json      its log, and what it says of itself
DIR/client/, metrics-*.txt|jsonl      the first run on it
DIR/client-2/, metrics-*-2.txt|jsonl  the second one, where the plan asks for several
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from headrace.errors import ConfigError, HeadraceError, InvariantError, LaunchError
from headrace.lab.campaign.interference import CpuUse
from headrace.lab.campaign.launchers.server import Server
from headrace.lab.campaign.launchers.start import Launcher, Leftover
from headrace.lab.campaign.memory import MemoryUse, wait_for_release
from headrace.lab.campaign.plan import RunTable
from headrace.lab.campaign.progress import Reporter
from headrace.lab.campaign.result import DESCRIPTION, LOG, run_files
from headrace.lab.campaign.sampling import Sampler
from headrace.lab.campaign.target import TargetTable
from headrace.lab.campaign.telemetry import Gpus
from headrace.lab.campaign.watch import Watch
from headrace.lab.client.load import Progress
from headrace.lab.records.results import RunResult
from headrace.lab.records.store import read_run
from headrace.lab.workload.spec import WorkloadSpec

Json = Any

# Shared memory that a server left behind, from which it is told.
_LEFT_BYTES = 1 << 20


class Measure(Protocol):
    """`headrace.lab.client.measure`, or what a test puts in its place."""

    def __call__(
        self, target_url: str, workload_spec: WorkloadSpec, out_dir: Path, *, model: str, progress: Any
    ) -> RunResult: ...


class Sessions:
    """What all the servers of one campaign share.

    `live` runs one of them to its end.  Where memory is not given back by the last one, the next is not started.
    """

    def __init__(self, spec: WorkloadSpec, run: RunTable, measure: Measure, reporter: Reporter, gpus: Gpus | None):
        self._spec = spec
        self._run = run
        self._measure = measure
        self._reporter = reporter
        self._gpus = gpus
        self._memory = MemoryUse.now(gpus)

    def live(
        self,
        launcher: Launcher,
        target: TargetTable,
        flags: Mapping[str, Json],
        directory: Path,
        *,
        label: str,
        nonce: str,
        started: Callable[[Leftover], None],
        facts: dict[str, Json],
    ) -> None:
        """Leaves the runs' files in `directory`, and what is known of the server in `facts`, as far as it came.

        Raises LaunchError with the kind of what went wrong, or another HeadraceError of the client.
        """
        wait_for_release(self._memory, self._gpus)
        memory = MemoryUse.now(self._gpus)
        server = launcher.start(
            flags,
            log=directory / LOG,
            nonce=nonce,
            started=started,
            waiting=lambda phase: self._reporter.waiting(label, phase),
        )
        try:  # from here on, whatever happens, the server is stopped
            facts.update(version=server.version, ready_s=round(server.ready_s, 3), runs=[])
            server.save_description(directory / DESCRIPTION)
            self._reporter.measuring(label, server.ready_s)
            for number in range(1, self._run.runs_per_server + 1):
                facts["runs"].append(self._once(server, target, directory, label, nonce, number))
        finally:
            facts["exit_code"] = server.stop(grace_s=target.stop_grace_s)
            left = max(0, MemoryUse.now(self._gpus).shared - memory.shared)
            if server.process is not None and left > _LEFT_BYTES:
                facts["shared_memory_left_bytes"] = left

    def _once(
        self, server: Server, target: TargetTable, directory: Path, label: str, nonce: str, number: int
    ) -> dict[str, Json]:
        """One measured run on a server; returns what it took of the processor."""
        files = run_files(directory, number)
        server.save_metrics(files.before)
        sampler = Sampler(server, files, every_s=self._run.scrape_every_s, gpus=self._gpus)
        watch = Watch(server, sampler, frozen_after_s=target.frozen_after_s, timeout_s=self._run.timeout_s)
        before = CpuUse.now(nonce)
        result, error = RunResult("", {}, {}), None
        try:
            with sampler, watch:
                result, error = self._load(server, label, files.client, number, watch)
        except KeyboardInterrupt:
            if watch.failure() is None:  # else it was the watch, which cannot end a server that is not ours
                raise
        used = CpuUse.now(nonce).since(before)
        ended = watch.failure()
        if ended is not None:
            raise ended  # why the server went explains whatever the client saw
        if error is not None:
            raise error
        server.save_metrics(files.after)
        if not result.metrics.get("completed"):
            raise LaunchError(
                f"not one request was served{_first_error(files.client)}", kind="protocol", log_tail=server.log_tail()
            )
        # Of a server that is not seen among this machine's processes nobody can say what was foreign.
        seen = server.process is not None and used.server > 0
        return {"cpu_s": round(used.server, 1), "foreign_cpu_share": round(used.foreign_share, 3)} if seen else {}

    def _load(
        self, server: Server, label: str, out: Path, number: int, watch: Watch
    ) -> tuple[RunResult, HeadraceError | None]:
        """The client's result, or its error: a dead server may have caused it, so the caller judges."""

        def progress(state: Progress) -> None:
            watch.in_flight(state.issued - state.done, state.done)
            self._reporter.progress(label, state)

        # Other requests in each run on one server, or its prefix cache would know them; the same ones in each cell.
        spec = replace(self._spec, seed=self._spec.seed + number - 1)
        try:
            return self._measure(server.url, spec, out, model=server.model, progress=progress), None
        except InvariantError:
            raise
        except HeadraceError as error:
            return RunResult("", {}, {}), error


def measure(target_url: str, workload_spec: WorkloadSpec, out_dir: Path, *, model: str, progress: Any) -> RunResult:
    """The lab's own client; imported when something is measured (uvloop, numpy)."""
    from headrace.lab.client import measure as with_client

    return with_client(target_url, workload_spec, out_dir, model=model, progress=progress)


def one_line(result: RunResult | None, duration_s: float) -> str:
    """A run in a line of the log; of several on one server the last one."""
    metrics: Mapping[str, float] = result.metrics if result is not None else {}
    parts = [f"{metrics['completed']:.0f} requests"] if "completed" in metrics else []
    if "duration" in metrics:
        parts.append(f"in {metrics['duration']:.1f} s")
    if "total_token_throughput" in metrics:
        parts.append(f"{metrics['total_token_throughput']:.0f} tok/s in all")
    if "mean_ttft_ms" in metrics:
        parts.append(f"mean TTFT {metrics['mean_ttft_ms']:.0f} ms")
    return ", ".join(parts) + f" ({duration_s:.0f} s with start and stop)"


def _first_error(client: Path) -> str:
    try:
        _, records = read_run(client)
    except ConfigError:
        return ""
    failed = next((record for record in records if record.error_class is not None), None)
    return f": {failed.error_class}, {(failed.error or 'no text')[:200]}" if failed is not None else ""
