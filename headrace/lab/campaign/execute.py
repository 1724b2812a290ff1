"""The campaign itself: for each run start a server, measure it, stop it, seal the result; then the next one.

Everything that can be decided is decided before the first server starts; everything that happens is kept.  A failing
cell is a result and the campaign goes on; only a full disk, Ctrl-C and our own bugs end it, and the same command
resumes.
"""

from __future__ import annotations

import os
import random
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from headrace.errors import ConfigError, HeadraceError, InvariantError, LaunchError
from headrace.lab.campaign import resume
from headrace.lab.campaign.cells import DEMO_MODEL, PlannedCell, cells
from headrace.lab.campaign.files import campaign_lock, disk_errors, write_json
from headrace.lab.campaign.interference import CpuUse
from headrace.lab.campaign.launchers.classify import broken_rule
from headrace.lab.campaign.launchers.headrace import HeadraceLauncher, Server
from headrace.lab.campaign.launchers.process import ProcessIdentity
from headrace.lab.campaign.plan import Plan
from headrace.lab.campaign.progress import Reporter
from headrace.lab.campaign.provenance import run_facts, run_key, workload_hash
from headrace.lab.campaign.result import AFTER, BEFORE, CLIENT, FinishedRun, finished_run
from headrace.lab.campaign.resume import Failure, Inspection, RunState, Seal, run_directory
from headrace.lab.campaign.study import build_study
from headrace.lab.campaign.watch import Watch
from headrace.lab.client.load import Progress
from headrace.lab.files import write_durably
from headrace.lab.records.results import RunResult, Study, study_to_json
from headrace.lab.records.store import read_run
from headrace.lab.workload.spec import WorkloadSpec

Json = Any

PLAN, CAMPAIGN, STUDY = "plan.toml", "campaign.json", "study.json"
_STOP_GRACE_S = 15.0


class Measure(Protocol):
    """`headrace.lab.client.measure`, or what a test puts in its place."""

    def __call__(
        self, target_url: str, workload_spec: WorkloadSpec, out_dir: Path, *, model: str, progress: Any
    ) -> RunResult: ...


@dataclass(frozen=True, slots=True)
class Task:
    """One run that a plan asks for."""

    cell: PlannedCell
    repeat: int
    key: str

    def label(self, repeats: int) -> str:
        return self.cell.name if repeats == 1 else f"{self.cell.name} run {self.repeat}"


def run_order(plan: Plan, legal: tuple[PlannedCell, ...]) -> list[tuple[PlannedCell, int]]:
    """(cell, repeat) in the order of measuring: repeat after repeat over all cells, so repeats are interleaved."""
    order = []
    for repeat in range(1, plan.run.repeats + 1):
        visited = list(legal)
        if plan.run.order == "shuffled":
            random.Random(f"{plan.run.seed}/{repeat}").shuffle(visited)
        order += [(cell, repeat) for cell in visited]
    return order


def run_campaign(
    plan: Plan,
    plan_text: str,
    out: Path,
    *,
    reporter: Reporter,
    launcher: HeadraceLauncher | None = None,
    measure: Measure | None = None,
    retry_failed: bool = False,
) -> Study:
    """Measure what is not measured yet in `out`, and return the study (also in `out`/study.json after every run).

    retry_failed  measure failed runs again; otherwise a failure is a result
    Raises ConfigError (another plan's directory, another lab at work, an unreadable workload), LaunchError (disk) and
    KeyboardInterrupt; what is finished then stays finished.
    """
    with disk_errors(out):
        _make_directory(out)
        with campaign_lock(out):
            return _Campaign(plan, out, reporter, launcher, measure).run(plan_text, retry_failed=retry_failed)


class _Campaign:
    def __init__(
        self,
        plan: Plan,
        out: Path,
        reporter: Reporter,
        launcher: HeadraceLauncher | None,
        measure: Measure | None,
    ) -> None:
        self.plan = plan
        self.out = out
        self.reporter = reporter
        self.cells = cells(plan)
        self.spec = plan.workload_spec()
        self.workload = workload_hash(self.spec)
        self.launcher = launcher or HeadraceLauncher(
            served_model=_served_name(plan), model=plan.target.model, ready_timeout_s=plan.target.ready_timeout_s
        )
        self.measure = measure or _measure
        self.facts = run_facts()
        self.finished: dict[tuple[str, int], FinishedRun] = {}

    def run(self, plan_text: str, *, retry_failed: bool) -> Study:
        self._claim(plan_text)
        tasks = [self._task(cell, repeat) for cell, repeat in run_order(self.plan, self._legal())]
        self._adopt(tasks)
        todo: list[Task] = []
        for task in tasks:
            found = resume.inspect(self._directory(task), task.key)
            if found.state is RunState.DONE or (found.state is RunState.FAILED and not retry_failed):
                assert found.seal is not None
                self._keep(task, found.seal)
            else:
                todo.append(task)
        study = self._write_study()
        self.reporter.begin(len(tasks), len(tasks) - len(todo))
        try:
            for number, task in enumerate(todo, start=len(tasks) - len(todo) + 1):
                if not self._time_for(task):
                    self.reporter.note(
                        f"repeat {task.repeat} would end after max-minutes = {self.plan.run.max_minutes:g}: left out"
                    )
                    break
                self._clear(task, resume.inspect(self._directory(task), task.key))
                self._run(task, number)
                study = self._write_study()
        finally:
            self.reporter.close()
        return study

    def _time_for(self, task: Task) -> bool:
        """Whether this run's repeat may begin.  Only whole repeats are left out, so that all cells have as many; the
        time of earlier runs is the measure, also of those that an interrupted campaign left behind."""
        limit, begun = self.plan.run.max_minutes, any(repeat >= task.repeat for _, repeat in self.finished)
        if limit is None or task.repeat == 1 or begun:
            return True
        spent_s = sum(run.seal.duration_s for run in self.finished.values())
        return spent_s * task.repeat / (task.repeat - 1) <= 60 * limit

    def _claim(self, plan_text: str) -> None:
        """Make the directory this campaign's, or see that it is: the plan may grow, what is asked may not change."""
        path = self.out / CAMPAIGN
        for leftover in self.out.glob(".*.tmp"):  # of a lab that was killed while it wrote
            leftover.unlink()
        known = resume.read_json(path)
        if known.get("name", self.plan.name) != self.plan.name:
            raise ConfigError(f"{self.out} holds the campaign {known['name']!r}: give another --out")
        if known.get("workload_sha256", self.workload) != self.workload:
            raise ConfigError(
                f"{self.out} holds runs of another workload (its plan is {self.out / PLAN}; the files that it names "
                "count as well), and they could not be compared: give another --out"
            )
        write_durably(self.out / PLAN, plan_text)
        order = [f"{cell.name}/run-{repeat}" for cell, repeat in run_order(self.plan, self._legal())]
        begun = known.get("begun", resume.now())
        mine = {"name": self.plan.name, "workload_sha256": self.workload, "begun": begun, "order": order}
        write_json(path, {"schema_version": 1, **mine})

    def _legal(self) -> tuple[PlannedCell, ...]:
        return tuple(cell for cell in self.cells if cell.legal)

    def _task(self, cell: PlannedCell, repeat: int) -> Task:
        return Task(cell, repeat, run_key(cell.flags, workload=self.workload, model=self.plan.target.model))

    def _directory(self, task: Task) -> Path:
        return run_directory(self.out, task.cell.name, task.repeat)

    def _clear(self, task: Task, found: Inspection) -> None:
        if found.state is not RunState.ABSENT:
            aside = resume.set_aside(self._directory(task))
            why = found.why or "a failed run is tried again"
            self.reporter.note(f"{task.cell.name}: {why}; it is kept as {aside.name}")

    def _adopt(self, tasks: Sequence[Task]) -> None:
        """Take over finished runs of this very configuration from cells that had another name in an earlier plan."""
        strays = resume.strays(self.out, {self._directory(task) for task in tasks})
        for task in tasks:
            if not self._directory(task).exists() and strays.get(task.key):
                resume.adopt(strays[task.key].pop(0), self._directory(task))

    def _keep(self, task: Task, seal: Seal) -> FinishedRun:
        """A finished run with its result; under the name that its cell has in this plan."""
        seal = replace(seal, cell=task.cell.name, repeat=task.repeat)
        run = finished_run(self.out, self._directory(task), seal)
        self.finished[task.cell.name, task.repeat] = run
        return run

    def _run(self, task: Task, number: int) -> None:
        """Measure one run and seal it, as a result or as a failure."""
        label, directory = task.label(self.plan.run.repeats), self._directory(task)
        nonce = f"headrace-run-{secrets.token_hex(8)}"
        start = time.monotonic()
        self.reporter.starting(label, number)
        resume.begin(directory, key=task.key, nonce=nonce)
        failure: Failure | None = None
        server_facts: dict[str, Json] = {"nonce": nonce}
        try:
            self._measure_once(task, label, directory, nonce, server_facts)
        except InvariantError:
            raise
        except HeadraceError as error:
            kind = error.kind if isinstance(error, LaunchError) else "client"
            if kind == "disk" and _disk_is_ours(error):
                raise
            log_tail = error.log_tail if isinstance(error, LaunchError) else ""
            failure = Failure(kind, str(error), log_tail, broken_rule(log_tail))
        seal = Seal(
            key=task.key,
            cell=task.cell.name,
            repeat=task.repeat,
            ended=resume.now(),
            duration_s=round(time.monotonic() - start, 3),
            facts=self.facts,
            server=server_facts,
            failure=failure,
        )
        resume.seal_run(directory, seal)
        result = self._keep(task, seal).result
        text = f"failed ({failure.kind}): {failure.message}" if failure else _one_line(result, seal.duration_s)
        self.reporter.ended(label, text, good=failure is None)
        for warning in result.warnings if result is not None else ():
            self.reporter.note(f"  {label}: {warning}")

    def _measure_once(self, task: Task, label: str, directory: Path, nonce: str, server_facts: dict[str, Json]) -> None:
        """Leaves the run's records in its directory and what is known of its server in `server_facts`."""

        def note(identity: ProcessIdentity) -> None:
            server_facts["process"] = identity.to_json()
            resume.note_server(directory, key=task.key, nonce=nonce, server=identity)

        server = self.launcher.start(task.cell.flags, log=directory / "server.log", nonce=nonce, started=note)
        try:  # from here on, whatever happens, the server is stopped
            server_facts.update(version=server.version, ready_s=round(server.ready_s, 3))
            self.reporter.measuring(label, server.ready_s)
            target = self.plan.target
            server.save_metrics(directory / BEFORE)
            watch = Watch(server, frozen_after_s=target.frozen_after_s, timeout_s=self.plan.run.timeout_s)
            before = CpuUse.now(nonce)
            with watch:
                result, error = self._load(server, label, directory)
            used = CpuUse.now(nonce).since(before)
            server_facts.update(cpu_s=round(used.server, 1), foreign_cpu_share=round(used.foreign_share, 3))
            ended = watch.failure()
            if ended is not None:
                raise ended  # why the server went explains whatever the client saw
            if error is not None:
                raise error
            server.save_metrics(directory / AFTER)
        finally:
            server_facts["exit_code"] = server.stop(grace_s=_STOP_GRACE_S)
        if not result.metrics.get("completed"):
            raise LaunchError(
                f"not one request was served{_first_error(directory / CLIENT)}",
                kind="protocol",
                log_tail=server.process.log_tail(),
            )

    def _load(self, server: Server, label: str, directory: Path) -> tuple[RunResult, HeadraceError | None]:
        """The client's result, or its error: a dead server may have caused it, so the caller judges."""

        def progress(state: Progress) -> None:
            self.reporter.progress(label, state)

        try:
            return self.measure(server.url, self.spec, directory / CLIENT, model=server.model, progress=progress), None
        except InvariantError:
            raise
        except HeadraceError as error:
            return RunResult("", {}, {}), error

    def _write_study(self) -> Study:
        runs = {
            cell.name: [
                self.finished[cell.name, repeat]
                for repeat in range(1, self.plan.run.repeats + 1)
                if (cell.name, repeat) in self.finished
            ]
            for cell in self.cells
        }
        repeats = self.plan.run.repeats
        study = build_study(self.plan.name, self.plan.title, self.cells, runs, repeats=repeats, facts=self.facts)
        write_durably(self.out / STUDY, study_to_json(study))
        return study


def _measure(target_url: str, workload_spec: WorkloadSpec, out_dir: Path, *, model: str, progress: Any) -> RunResult:
    from headrace.lab.client import measure  # aiohttp and numpy: only when something is measured

    return measure(target_url, workload_spec, out_dir, model=model, progress=progress)


def _first_error(client: Path) -> str:
    try:
        _, records = read_run(client)
    except ConfigError:
        return ""
    failed = next((record for record in records if record.error_class is not None), None)
    return f": {failed.error_class}, {(failed.error or 'no text')[:200]}" if failed is not None else ""


def _served_name(plan: Plan) -> str:
    return Path(plan.target.model).name if plan.target.model else DEMO_MODEL


def _make_directory(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ConfigError(f"--out {out} is a file, not a directory") from None
    known = {PLAN, CAMPAIGN, STUDY, "cells", "lock"}
    strangers = sorted(name for name in os.listdir(out) if name not in known and not name.startswith("."))
    if strangers and not (out / CAMPAIGN).exists():
        raise ConfigError(f"--out {out} holds other things ({strangers[0]}) and no campaign: give a new directory")


def _disk_is_ours(error: HeadraceError) -> bool:
    """A disk that is full for the client is full for the lab; a server's own complaint comes with its log."""
    return isinstance(error, LaunchError) and not error.log_tail


def _one_line(result: RunResult | None, duration_s: float) -> str:
    metrics: Mapping[str, float] = result.metrics if result is not None else {}
    parts = [f"{metrics['completed']:.0f} requests"] if "completed" in metrics else []
    if "duration" in metrics:
        parts.append(f"in {metrics['duration']:.1f} s")
    if "total_token_throughput" in metrics:
        parts.append(f"{metrics['total_token_throughput']:.0f} tok/s in all")
    if "mean_ttft_ms" in metrics:
        parts.append(f"mean TTFT {metrics['mean_ttft_ms']:.0f} ms")
    return ", ".join(parts) + f" ({duration_s:.0f} s with start and stop)"
