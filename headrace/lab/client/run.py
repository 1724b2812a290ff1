"""One run: a workload sent to a target, its records, and whether they may be believed."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from headrace.clock import MonotonicClock
from headrace.errors import ConfigError
from headrace.lab.client.bodies import PATHS, request_body
from headrace.lab.client.calibration import MIN_RUN_S, busiest, calibrate
from headrace.lab.client.control import request_headers
from headrace.lab.client.load import Progress
from headrace.lab.client.machine import MachineTime
from headrace.lab.client.processes import run_in_processes
from headrace.lab.client.ray_load import run_on_ray
from headrace.lab.client.self_check import ClientCost, Verdict, judge
from headrace.lab.client.served import scrape, served_between
from headrace.lab.client.shard import Item, Job, Turn, processes_for, run_job, run_to_the_end, split
from headrace.lab.http import base_of
from headrace.lab.metrics.result import run_result_from_records
from headrace.lab.records.environment import describe_environment
from headrace.lab.records.results import RunResult, RunVerdict
from headrace.lab.records.schema import RequestRecord
from headrace.lab.records.store import is_done, write_run
from headrace.lab.workload.arrivals import arrival_schedule, audit_arrivals
from headrace.lab.workload.samples import Workload, build_workload
from headrace.lab.workload.spec import WorkloadSpec
from headrace.lab.workload.tokens import TextTokenizer, open_tokenizer

# A chat template is the same for all prompts and stays in the cache; whole prompts should not.
MAX_CACHED_SHARE = 0.05

ProgressCallback = Callable[[Progress], None]


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
    processes: int | None = 1,
    ray_address: str | None = None,
    calibrated: bool = True,
) -> MeasuredRun:
    """Send the workload and judge the run; nothing is stored.  Must be called without a running event loop.

    processes    client processes; None for as many as the load wants and the machine has room for
    ray_address  run them on this Ray cluster instead
    calibrated   measure the client against the null server afterwards, when the run was not a short one
    """
    first = [sample for sample in workload.samples if sample.after is None]
    schedule = _schedule(spec, workload, len(first))
    headers = request_headers(spec.headers)
    url = base_url + (endpoint_path or PATHS[spec.endpoint])
    job = Job(url, headers, spec.timeout_s, spec.max_concurrency, _items(spec, workload, schedule, model))
    jobs = split(job, processes or _processes(spec, len(first)))
    clock = MonotonicClock()
    warmup_failed = _warm_up(spec, workload, job, model)
    before, machine = scrape(base_url, headers), MachineTime.now(url)
    pairs = [_clock_pair(clock)]
    if ray_address is not None:
        outcome = run_on_ray(jobs, ray_address)
    elif len(jobs) > 1:
        outcome = run_in_processes(jobs, progress)
    else:
        outcome = run_to_the_end(run_job(job, progress=progress))
    pairs.append(_clock_pair(clock))
    others = after.others_share_since(machine) if machine and (after := MachineTime.now(url)) else None
    served = served_between(before, scrape(base_url, headers))
    records = outcome.records
    for record in records:
        record.prompt_tokens_client = workload.samples[record.index].prompt_tokens
        record.max_tokens = workload.samples[record.index].max_tokens
    _recount(records, tokenizer)
    (wall0, mono0), (wall1, mono1) = pairs
    long_enough = outcome.end_ns - outcome.start_ns >= MIN_RUN_S * 1e9
    load = busiest(records, len(jobs)) if calibrated and long_enough and not outcome.interrupted else None
    cost = ClientCost(
        loop_lags_ns=outcome.loop_lags_ns,
        cpu_s=max(outcome.cpu_s),
        wall_s=(max(mono for _, mono in outcome.clock_pairs) - min(mono for _, mono in outcome.clock_pairs)) / 1e9,
        drift_ns=(wall1 - wall0) - (mono1 - mono0),
        others_share=others,
        calibration=calibrate(load) if load is not None else None,
    )
    paced = schedule is not None and bool(schedule[-1])
    verdict = judge(records, cost, paced=paced)
    known = _settings(spec, model, settings or {})
    warnings = _warnings(spec, workload, warmup_failed, len(records), profiled=bool(known.get("profile")))
    warnings += cache_warnings(spec, records, served)
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
        "client_processes": len(jobs),
        "schedule_ns": None if schedule is None or not paced else list(schedule),
        "arrivals_planned": asdict(audit_arrivals(schedule or ())),
        "arrivals_sent": asdict(audit_arrivals([r.sent_ns for r in records], start_ns=outcome.start_ns)),
        "issued": len(records),
        "start_ns": outcome.start_ns,
        "end_ns": outcome.end_ns,
        "clock_pairs": [{"wall_ns": wall, "monotonic_ns": mono} for wall, mono in pairs],
        "server": served,
        "verdict": verdict.to_json(),
        "warnings": warnings,
        "environment": describe_environment(),
    }
    return MeasuredRun(records, outcome.start_ns, outcome.end_ns, verdict, outcome.interrupted, known, manifest)


def _schedule(spec: WorkloadSpec, workload: Workload, sessions: int) -> tuple[int, ...] | None:
    if workload.arrivals_ns is not None:
        return workload.arrivals_ns[:sessions]
    return None if spec.closed_loop else arrival_schedule(spec, sessions)


def _items(spec: WorkloadSpec, workload: Workload, schedule: Sequence[int] | None, model: str) -> tuple[Item, ...]:
    """One item a request, or a session with its turns."""
    begins: dict[int, int] = {}  # turn -> the first one of its session
    turns: dict[int, list[Turn]] = {}
    for sample in workload.samples:
        if sample.after is None:
            begins[sample.index] = sample.index
            turns[sample.index] = []
        else:
            first = begins[sample.index] = begins[sample.after]
            think_ns = round(sample.think_s * 1e9)
            turns[first].append(Turn(sample.index, str(sample.prompt), sample.max_tokens, think_ns))
    return tuple(
        Item(
            index,
            request_body(spec, workload.samples[index], model).decode(),
            None if schedule is None else schedule[place],
            tuple(later),
        )
        for place, (index, later) in enumerate(turns.items())
    )


def _processes(spec: WorkloadSpec, sessions: int) -> int:
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    rate = spec.ramp_up_end_rps or spec.request_rate
    at_once = math.isinf(rate) and not spec.replayed and spec.rate_steps is None
    streams = spec.max_concurrency or (sessions if at_once else 0)
    return processes_for(streams=streams, rate=rate, cpus=cpus)


def _warm_up(spec: WorkloadSpec, workload: Workload, job: Job, model: str) -> int:
    """Send the warm-up prompts; how many failed."""
    if not workload.warmup:
        return 0
    bodies = [request_body(spec, sample, model).decode() for sample in workload.warmup]
    items = tuple(Item(index, body, 0) for index, body in enumerate(bodies))
    warmed = run_to_the_end(run_job(replace(job, items=items, max_concurrency=spec.max_concurrency or len(items))))
    if warmed.interrupted:
        raise KeyboardInterrupt
    return sum(not record.ok for record in warmed.records)


def cache_warnings(spec: WorkloadSpec, records: Sequence[RequestRecord], served: Mapping[str, float]) -> list[str]:
    """A sentence when prompts were found in the server's prefix cache though the workload repeats none of them."""
    shares_on_purpose = spec.dataset_name in ("shared-prefix", "sessions", "sonnet", "trace") or spec.random_prefix_len
    good = [record for record in records if record.ok and record.prompt_tokens_server]
    told = [record for record in good if "cached_tokens" in record.extra]
    share, source = 0.0, ""
    if told:
        prompts = sum(record.prompt_tokens_server or 0 for record in told)
        share, source = sum(record.extra["cached_tokens"] for record in told) / prompts, "the answers' cached_tokens"
    elif served.get("prefix_queries"):
        share, source = served.get("prefix_hits", 0.0) / served["prefix_queries"], "the server's counters"
    if shares_on_purpose or share <= MAX_CACHED_SHARE:
        return []
    return [
        f"{share:.0%} of the prompt tokens came from the server's prefix cache ({source}): these prompts were there "
        "before, and TTFT and throughput are flattered; use another --seed, reset the cache or restart the server"
    ]


def _recount(records: list[RequestRecord], tokenizer: TextTokenizer) -> None:
    """Count the answers' tokens ourselves: all with a local tokenizer, with a server's only where it sent no count."""
    for record in records:
        texts = (record.extra.get("reasoning_text"), record.output_text, record.extra.get("tool_text"))
        if any(texts) and (tokenizer.local or record.output_tokens_server is None):
            try:
                counts = [len(tokenizer.encode(text, special=False)) for text in texts if text]
                record.output_tokens_retokenized = sum(counts)
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
