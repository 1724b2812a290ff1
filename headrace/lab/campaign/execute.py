"""The campaign itself: for each run start a server, measure it, stop it, seal the result; then the next one.

Everything that can be decided is decided before the first server starts; everything that happens is kept.  A failing
cell is a result and the campaign goes on; only a full disk, Ctrl-C and our own bugs end it, and the same command
resumes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import secrets
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from headrace.errors import ConfigError, HeadraceError, InvariantError, LaunchError
from headrace.lab.campaign import resume
from headrace.lab.campaign.cells import DEMO_MODEL, PlannedCell, cells
from headrace.lab.campaign.files import campaign_lock, disk_errors, write_json
from headrace.lab.campaign.launchers.classify import broken_rule
from headrace.lab.campaign.launchers.running import launcher_for
from headrace.lab.campaign.launchers.start import Launcher, Leftover
from headrace.lab.campaign.plan import Plan
from headrace.lab.campaign.progress import Reporter
from headrace.lab.campaign.provenance import run_facts, run_key, target_facts, workload_hash
from headrace.lab.campaign.result import FinishedRun, finished_run
from headrace.lab.campaign.resume import Failure, Inspection, RunState, Seal, run_directory
from headrace.lab.campaign.session import Measure, Sessions, measure, one_line
from headrace.lab.campaign.study import build_study
from headrace.lab.campaign.target import TargetTable
from headrace.lab.campaign.telemetry import open_gpus
from headrace.lab.files import write_durably
from headrace.lab.records.results import Study, study_to_json

Json = Any

PLAN, CAMPAIGN, STUDY = "plan.toml", "campaign.json", "study.json"
# A disk with less than this is full: a failure there may be its doing, whatever the server or the client made of it.
_ROOM_BYTES = 1 << 18


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
    launcher: Launcher | None = None,
    measure: Measure = measure,
    retry_failed: bool = False,
    only: Collection[tuple[str, int]] | None = None,
) -> Study:
    """Measure what is not measured yet in `out`, and return the study (also in `out`/study.json after every run).

    launcher      instead of each target's own
    retry_failed  measure failed runs again; otherwise a failure is a result
    only          (cell, repeat) of the runs that may be measured now; the others stay as they are
    Raises ConfigError (another plan's directory, another lab at work, an unreadable workload), LaunchError (disk) and
    KeyboardInterrupt; what is finished then stays finished.
    """
    with disk_errors(out):
        _make_directory(out)
        with campaign_lock(out):
            return _Campaign(plan, out, reporter, launcher, measure).run(
                plan_text, retry_failed=retry_failed, only=only
            )


class _Campaign:
    def __init__(self, plan: Plan, out: Path, reporter: Reporter, launcher: Launcher | None, measure: Measure) -> None:
        self.plan = plan
        self.out = out
        self.reporter = reporter
        self.cells = cells(plan)
        self.spec = plan.workload_spec()
        self.workload = workload_hash(self.spec)
        self.launcher = launcher
        self.gpus = open_gpus()
        self.sessions = Sessions(self.spec, plan.run, measure, reporter, self.gpus)
        self.facts = run_facts()
        self.finished: dict[tuple[str, int], FinishedRun] = {}

    def run(self, plan_text: str, *, retry_failed: bool, only: Collection[tuple[str, int]] | None = None) -> Study:
        self._claim(plan_text)
        tasks = [self._task(cell, repeat) for cell, repeat in run_order(self.plan, self._legal())]
        self._adopt(tasks)
        todo: list[Task] = []
        for task in tasks:
            found = resume.inspect(self._directory(task), task.key)
            if found.state is RunState.DONE or (found.state is RunState.FAILED and not retry_failed):
                assert found.seal is not None
                self._keep(task, found.seal)
            elif only is None or (task.cell.name, task.repeat) in only:
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
        several = self.plan.run.runs_per_server
        return Task(cell, repeat, run_key(cell.flags, workload=self.workload, target=cell.target, runs=several))

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
        facts: dict[str, Json] = {"nonce": nonce}

        def note(leftover: Leftover) -> None:
            facts["process"] = leftover.process.to_json()
            resume.note_server(directory, key=task.key, nonce=nonce, leftover=leftover)

        target = task.cell.target
        launcher = self.launcher or launcher_for(target, _served_name(target))
        try:
            self.sessions.live(
                launcher, target, task.cell.flags, directory, label=label, nonce=nonce, started=note, facts=facts
            )
        except InvariantError:
            raise
        except HeadraceError as error:
            kind = error.kind if isinstance(error, LaunchError) else "client"
            if (kind == "disk" and _disk_is_ours(error)) or not _has_room(directory):
                raise LaunchError(f"{directory}: {error}", kind="disk") from None
            log_tail = error.log_tail if isinstance(error, LaunchError) else ""
            failure = Failure(kind, str(error), log_tail, broken_rule(f"{error}\n{log_tail}"))
        seal = Seal(
            key=task.key,
            cell=task.cell.name,
            repeat=task.repeat,
            ended=resume.now(),
            duration_s=round(time.monotonic() - start, 3),
            facts={**self.facts, **target_facts(target, self.gpus)},
            server=facts,
            failure=failure,
        )
        resume.seal_run(directory, seal)
        results = self._keep(task, seal).results
        said = f"failed ({failure.kind}): {failure.message}" if failure else one_line(results[-1], seal.duration_s)
        self.reporter.ended(label, said, good=failure is None)
        for warning in dict.fromkeys(warning for result in results for warning in result.warnings):
            self.reporter.note(f"  {label}: {warning}")

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
        study = replace(study, facts={**study.facts, **_question(self.plan)})
        write_durably(self.out / STUDY, study_to_json(study))
        return study


def _question(plan: Plan) -> dict[str, Json]:
    """What the plan asks of its cells, for the findings; nothing where it says nothing."""
    asked: dict[str, Json] = {"baseline": plan.run.baseline} if plan.run.baseline is not None else {}
    # The resolution says nothing where nothing is compared with something.
    return asked | ({"resolution": plan.run.resolution} if asked or len(plan.used_targets()) > 1 else {})


def _served_name(target: TargetTable) -> str:
    return target.name_of_model or DEMO_MODEL


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


def _has_room(directory: Path) -> bool:
    """Whether the disk still takes a file that is about as large as what a run leaves."""
    probe = directory / ".room.tmp"
    try:
        with probe.open("wb") as file:
            file.write(bytes(_ROOM_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno not in (errno.ENOSPC, errno.EDQUOT)
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
    return True
