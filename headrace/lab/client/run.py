"""One run: a workload sent to a target, its records, and whether they may be believed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from headrace.clock import MonotonicClock
from headrace.errors import ConfigError
from headrace.lab.client.bodies import PATHS, request_body
from headrace.lab.client.control import request_headers
from headrace.lab.client.load import LoadOutcome, Progress, Sent, run_load
from headrace.lab.client.reading import bounded, read_answer
from headrace.lab.client.self_check import ClientCost, Verdict, judge
from headrace.lab.client.transport import HttpTransport
from headrace.lab.http import base_of
from headrace.lab.metrics.result import run_result_from_records
from headrace.lab.records.environment import describe_environment
from headrace.lab.records.results import RunResult, RunVerdict
from headrace.lab.records.schema import RequestRecord
from headrace.lab.records.store import is_done, write_run
from headrace.lab.workload.arrivals import arrival_schedule, audit_arrivals
from headrace.lab.workload.samples import Sample, Workload, build_workload
from headrace.lab.workload.spec import WorkloadSpec
from headrace.lab.workload.tokens import TextTokenizer, open_tokenizer

# Answers are read after the run; a very long run would fill the memory with bytes, so beyond this they are read as
# they end, which costs a few microseconds a message in the event loop.
MAX_UNREAD_BYTES = 256 * 1024 * 1024

ProgressCallback = Callable[[Progress], None]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """A run as it was measured, before it is stored.

    start_ns, end_ns  from just before the first send to the end of the last answer, on the records' clock
    manifest          what is stored beside the records: see `write_run`
    """

    records: list[RequestRecord]
    start_ns: int
    end_ns: int
    verdict: Verdict
    interrupted: bool
    settings: dict[str, Any]
    manifest: dict[str, Any]

    @property
    def duration_s(self) -> float:
        return (self.end_ns - self.start_ns) / 1e9

    def noting(self, warning: str) -> MeasuredRun:
        """The run with one more warning, found out after it was measured."""
        return replace(self, manifest={**self.manifest, "warnings": [*self.manifest["warnings"], warning]})

    def result(self, source: str) -> RunResult:
        """The run's metrics, its verdict and what a reader must know of it; `source` says where it is kept."""
        return run_result_from_records(
            self.records,
            source=source,
            settings=self.settings,
            duration_s=self.duration_s,
            warnings=self.manifest["warnings"],
            verdict=RunVerdict(self.verdict.level, self.verdict.reasons),
        )


def measure(
    target_url: str,
    workload_spec: WorkloadSpec,
    out_dir: str | Path,
    *,
    model: str,
    progress: ProgressCallback | None = None,
    settings: Mapping[str, Any] | None = None,
) -> RunResult:
    """Measure a running server once, store the run durably in `out_dir`, and return its metrics.

    target_url  the server's root (http://127.0.0.1:8000)
    settings    what is known of the server's configuration; joins the result's settings and wins over our own keys
    progress    called about once a second from the thread that measures: it must be quick
    Failed requests are records and warnings.  Raises ConfigError (no tokenizer, bad dataset, `out_dir` holds a run)
    and LaunchError (disk).  Ctrl-C stores what was measured as an interrupted run and raises KeyboardInterrupt.
    """
    base_url = base_of(target_url)
    if is_done(Path(out_dir)):
        raise ConfigError(f"{out_dir} already holds a finished run; choose another directory")
    headers = request_headers(workload_spec.headers)
    tokenizer = open_tokenizer(workload_spec.tokenizer, base_url=base_url, model=model, headers=headers)
    workload = build_workload(workload_spec, tokenizer)
    run = conduct(
        base_url, workload_spec, workload, model=model, tokenizer=tokenizer, progress=progress, settings=settings
    )
    write_run(Path(out_dir), run.manifest, run.records, interrupted=run.interrupted)
    if run.interrupted:
        raise KeyboardInterrupt
    return run.result(str(out_dir))


def conduct(
    base_url: str,
    spec: WorkloadSpec,
    workload: Workload,
    *,
    model: str,
    tokenizer: TextTokenizer,
    endpoint_path: str | None = None,
    progress: ProgressCallback | None = None,
    settings: Mapping[str, Any] | None = None,
) -> MeasuredRun:
    """Send the workload and judge the run; nothing is stored.  Must be called without a running event loop."""
    schedule = None if spec.closed_loop else arrival_schedule(spec)
    bodies = [request_body(spec, sample, model) for sample in workload.samples]
    warmup = [request_body(spec, sample, model) for sample in workload.warmup]
    url = base_url + (endpoint_path or PATHS[spec.endpoint])
    clock = MonotonicClock()
    unread = _Unread(workload)
    pairs: list[tuple[int, int]] = []
    cpu_s: list[float] = []

    async def main() -> tuple[LoadOutcome, int]:
        transport = HttpTransport(url, headers=request_headers(spec.headers), timeout_s=spec.timeout_s, clock=clock)
        async with transport:
            warmup_failed = 0
            if warmup:
                limit = spec.max_concurrency or len(warmup)
                warmed = await run_load(warmup, [0] * len(warmup), transport, clock, max_concurrency=limit)
                if warmed.interrupted:
                    raise asyncio.CancelledError
                warmup_failed = sum(not sent.exchange.ok for sent in warmed.sent)
            pairs.append(_clock_pair(clock))
            cpu_s.append(time.process_time())
            outcome = await run_load(
                bodies,
                schedule,
                transport,
                clock,
                max_concurrency=spec.max_concurrency,
                progress=progress,
                on_done=unread.done,
            )
            cpu_s.append(time.process_time())
            pairs.append(_clock_pair(clock))
            return outcome, warmup_failed

    outcome, warmup_failed = _run(main())
    records = [unread.record(sent) for sent in outcome.sent]
    _recount(records, tokenizer)
    (wall0, mono0), (wall1, mono1) = pairs
    cost = ClientCost(
        loop_lags_ns=outcome.loop_lags_ns,
        cpu_s=cpu_s[1] - cpu_s[0],
        wall_s=(mono1 - mono0) / 1e9,
        drift_ns=(wall1 - wall0) - (mono1 - mono0),
    )
    paced = schedule is not None and bool(schedule[-1])
    verdict = judge(records, cost, paced=paced)
    known = _settings(spec, model, settings or {})
    warnings = _warnings(spec, workload, warmup_failed, len(records), profiled=bool(known.get("profile")))
    manifest = {
        "kind": "run",
        "target": url,
        "model": model,
        "settings": known,
        "workload": spec.to_json(),
        "workload_sha256": workload.digest(),
        "tokenizer": workload.tokenizer,
        "unique_prompt_ratio": workload.unique_prompt_ratio,
        "loop": "closed" if spec.closed_loop else "open",
        "schedule_ns": None if schedule is None or not paced else list(schedule),
        "arrivals_planned": asdict(audit_arrivals(schedule or ())),
        "arrivals_sent": asdict(audit_arrivals([r.sent_ns for r in records], start_ns=outcome.start_ns)),
        "issued": len(records),
        "start_ns": outcome.start_ns,
        "end_ns": outcome.end_ns,
        "clock_pairs": [{"wall_ns": wall, "monotonic_ns": mono} for wall, mono in pairs],
        "verdict": verdict.to_json(),
        "warnings": warnings,
        "environment": describe_environment(),
    }
    return MeasuredRun(records, outcome.start_ns, outcome.end_ns, verdict, outcome.interrupted, known, manifest)


class _Unread:
    """Turns exchanges into records: after the run, or on the way when too many bytes wait."""

    def __init__(self, workload: Workload) -> None:
        self._samples = workload.samples
        self._bytes = 0
        self._records: dict[int, RequestRecord] = {}

    def done(self, sent: Sent) -> None:
        self._bytes += sent.exchange.bytes_read
        if self._bytes > MAX_UNREAD_BYTES:
            self._records[sent.index] = self.record(sent)
            sent.exchange.reads.clear()

    def record(self, sent: Sent) -> RequestRecord:
        return self._records.get(sent.index) or _record(sent, self._samples[sent.index])


def _record(sent: Sent, sample: Sample) -> RequestRecord:
    exchange = sent.exchange
    record = RequestRecord(
        index=sent.index,
        planned_ns=sent.planned_ns,
        admitted_ns=sent.admitted_ns,
        sent_ns=exchange.sent_ns,
        headers_ns=exchange.headers_ns,
        done_ns=exchange.done_ns,
        prompt_tokens_client=sample.prompt_tokens,
        max_tokens=sample.max_tokens,
        status=exchange.status,
        error_class=exchange.error_class,
        error=None if exchange.error is None else bounded(exchange.error),
        extra={"new_connection": exchange.new_connection},
    )
    if exchange.connected_ns is not None:
        record.extra["connected_ns"] = exchange.connected_ns
    read_answer(record, exchange.reads, content_type=exchange.content_type, chunked=exchange.chunked)
    return record


def _recount(records: list[RequestRecord], tokenizer: TextTokenizer) -> None:
    """Count the answers' tokens ourselves: all with a local tokenizer, with a server's only where it sent no count."""
    for record in records:
        if record.output_text and (tokenizer.local or record.output_tokens_server is None):
            try:
                record.output_tokens_retokenized = len(tokenizer.encode(record.output_text, special=False))
            except ConfigError:
                return  # the server has gone: the missing counts are reported with the result


def _settings(spec: WorkloadSpec, model: str, extra: Mapping[str, Any]) -> dict[str, Any]:
    declared = spec.to_json()
    known = {
        "model": model,
        "num_prompts": spec.num_prompts,
        "request_rate": declared["request_rate"],
        "burstiness": declared["burstiness"],
        "dataset": spec.dataset_name,
        "scale": spec.scale,
        "seed": spec.seed,
        "backend": "openai-chat" if spec.endpoint == "chat" else "openai",
    }
    known |= spec.ramp_up
    if spec.max_concurrency is not None:
        known["max_concurrency"] = spec.max_concurrency
    return {**known, **extra}


def _warnings(spec: WorkloadSpec, workload: Workload, warmup_failed: int, issued: int, *, profiled: bool) -> list[str]:
    notes = []
    if profiled:
        notes.append("a profiler was on: the figures describe the profiled server and should not be compared")
    if workload.unique_prompt_ratio < 1:
        notes.append(
            f"only {workload.unique_prompt_ratio:.0%} of the prompts are different: the dataset was too small, and"
            " repeats hit a prefix cache"
        )
    if warmup_failed:
        notes.append(f"{warmup_failed} of {len(workload.warmup)} warm-up requests failed")
    if issued < spec.num_prompts:
        notes.append(f"only {issued} of {spec.num_prompts} requests were sent before the run was interrupted")
    return notes


def _clock_pair(clock: MonotonicClock) -> tuple[int, int]:
    return time.time_ns(), clock.now_ns()


def _run(main: Coroutine[Any, Any, _T]) -> _T:
    """Run to the end on uvloop where it exists.  The first Ctrl-C cancels `main`, which then returns what it has."""
    try:
        import uvloop

        factory: Callable[[], asyncio.AbstractEventLoop] | None = uvloop.new_event_loop
    except ImportError:
        factory = None
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)
