"""Kill the lab anywhere, damage its files, change its code: a finished run stays what it was, or is measured again."""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from campaign_world import World

from headrace.errors import ConfigError
from headrace.lab.campaign import provenance, resume
from headrace.lab.campaign.files import checksum
from headrace.lab.campaign.launchers.process import ProcessIdentity, kill_by_nonce, processes_with
from headrace.lab.records.results import CellStatus, study_from_json

LAB = Path(__file__).with_name("doomed_lab.py")
SEATS, REPEATS = [1, 2], 2
RUNS = [f"seqs={seats}/run-{repeat}" for seats in SEATS for repeat in (1, 2)]


class Labs:
    """Lives of labs on one directory, each ended by SIGKILL at a chosen instant (0: never)."""

    def __init__(self, out: Path) -> None:
        command = [sys.executable, str(LAB), str(out), json.dumps(SEATS), str(REPEATS)]
        self._breeder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def live(self, instant: int) -> tuple[int, int]:
        """Exit status, and how many events a lab that ended well lived through."""
        assert self._breeder.stdin is not None and self._breeder.stdout is not None
        print(instant, file=self._breeder.stdin, flush=True)
        status, lived = self._breeder.stdout.readline().split()
        return int(status), int(lived)

    def __enter__(self) -> Labs:
        return self

    def __exit__(self, *_: object) -> None:
        self._breeder.communicate()


def finished(out: Path) -> dict[str, dict[str, str]]:
    """Run -> the checksum of every file in it, for every sealed run."""
    return {
        str(sealed.parent.relative_to(out)): {
            str(path.relative_to(out)): checksum(path) for path in sealed.parent.rglob("*") if path.is_file()
        }
        for sealed in (out / "cells").glob("*/run-?/run.json")
    }


def leftovers(out: Path) -> list[int]:
    """Processes that a dead lab's servers have left; a server dies with its lab, so it is given that moment."""
    nonces = [json.loads(path.read_text())["nonce"] for path in out.glob("cells/*/run-*/state.json")]
    for pid in (pid for nonce in nonces for pid in processes_with(nonce)):
        with contextlib.suppress(ProcessLookupError):
            select.select([os.pidfd_open(pid)], [], [], 10)  # readable when it has ended
    return [pid for nonce in nonces for pid in processes_with(nonce)]


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 12))])
def test_killed_anywhere_and_resumed_until_done(tmp_path: Path, seed: int) -> None:
    """kill -9 at random instants: in the end every run is measured once, and finished bytes never changed."""
    out, instants = tmp_path / "campaign", random.Random(seed)
    kept: dict[str, dict[str, str]] = {}
    status, deaths = -1, 0
    with Labs(out) as labs:
        while status != 0:
            # A whole campaign is some 500 events.  Short lives make no progress, so lives grow and the campaign ends.
            status, _ = labs.live(instants.randint(1, 120 + 40 * deaths))
            now = finished(out)
            assert {run: now.get(run) for run in kept} == kept, "a finished run changed"
            assert leftovers(out) == [], "a server outlived its lab"
            kept = now
            assert status in (0, -signal.SIGKILL)
            deaths += status != 0
        assert deaths >= 2, "this seed tries too little"
        assert sorted(kept) == [f"cells/{run}" for run in RUNS]
        study = study_from_json((out / "study.json").read_text(), source="study")
        assert [[run.metrics["completed"] for run in cell.runs] for cell in study.cells] == [[6, 6], [6, 6]]
        assert labs.live(0)[0] == 0 and finished(out) == kept


def test_an_abandoned_run_is_kept_apart_and_measured_again(world: World) -> None:
    directory = resume.run_directory(world.out, "only", 1)
    world.run([1])
    (directory / "run.json").unlink()  # as after a kill just before the seal
    assert world.run([1]).cells[0].status is CellStatus.OK
    assert world.reporter.lines[0] == "only: run-1 was not finished; it is kept as run-1.attempt-1"
    (directory / "run.json").unlink()
    world.run([1])
    assert sorted(path.name for path in directory.parent.iterdir()) == ["run-1", "run-1.attempt-1", "run-1.attempt-2"]


@pytest.mark.parametrize("name", ["server.log", "client/requests.jsonl", "client/manifest.json", "run.json"])
def test_a_damaged_run_is_noticed_kept_and_measured_again(world: World, name: str) -> None:
    world.run([1])
    path = resume.run_directory(world.out, "only", 1) / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    world.run([1])
    assert f"run-1 is damaged: {name if name != 'run.json' else ''}" in world.reporter.lines[0]
    assert world.reporter.started == ["only"]


def test_a_file_that_is_gone_or_new_is_damage(world: World) -> None:
    world.run([1])
    directory = resume.run_directory(world.out, "only", 1)
    (directory / "metrics-after.txt").unlink()
    world.run([1])
    assert "metrics-after.txt is not what run.json recorded" in world.reporter.lines[0]
    (directory / "notes.txt").write_text("mine")
    world.run([1])
    assert "notes.txt is not what run.json recorded" in world.reporter.lines[0]


def test_runs_of_other_code_are_measured_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.run([1])
    monkeypatch.setattr(provenance, "code_version", lambda: "another")
    world.run([1])
    assert world.reporter.started == ["only"]
    assert "was measured with other settings, code" in world.reporter.lines[0]


def test_two_models_of_the_hub_are_two_runs() -> None:
    keys = {provenance.run_key({}, workload="w", model=model) for model in (None, "Qwen/Qwen3-0.6B", "Qwen/Qwen3-1.7B")}
    assert len(keys) == 3


def test_the_code_version_is_of_what_can_change_a_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "headrace"
    for name in ("core/scheduler.py", "lab/client/load.py", "lab/report/page.py", "lab/findings/compare.py"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text("")
    monkeypatch.setattr(provenance.headrace, "__file__", str(package / "__init__.py"))

    def version_after(name: str) -> str:
        (package / name).write_text("# edited")
        return provenance.code_version.__wrapped__()

    before = provenance.code_version.__wrapped__()
    assert version_after("lab/report/page.py") == version_after("lab/findings/compare.py") == before
    assert before != version_after("core/scheduler.py") != version_after("lab/client/load.py")


def test_a_directory_that_a_live_process_owns_is_refused(tmp_path: Path) -> None:
    """Where the lock does not hold (some network file systems), the owner's identity does."""
    directory = tmp_path / "run-1"
    resume.begin(directory, key="k", nonce="n")
    state = json.loads((directory / "state.json").read_text())
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as other:
        state["owner"] = ProcessIdentity.of(other.pid).to_json()
        (directory / "state.json").write_text(json.dumps(state))
        with pytest.raises(ConfigError, match=f"is being measured by process {other.pid}"):
            resume.inspect(directory, "k")
        other.stdin.close()  # type: ignore[union-attr]
    assert resume.inspect(directory, "k").state is resume.RunState.ABANDONED


def test_a_reused_process_id_is_not_the_owner(tmp_path: Path) -> None:
    directory = tmp_path / "run-1"
    resume.begin(directory, key="k", nonce="n")
    state = json.loads((directory / "state.json").read_text())
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as other:
        state["owner"] = {**ProcessIdentity.of(other.pid).to_json(), "start_ticks": 1}
        (directory / "state.json").write_text(json.dumps(state))
        assert resume.inspect(directory, "k").state is resume.RunState.ABANDONED
        resume.set_aside(directory)
        assert other.poll() is None  # and it is left alone
        other.stdin.close()  # type: ignore[union-attr]


def test_what_an_abandoned_run_left_running_is_ended_by_its_nonce(tmp_path: Path) -> None:
    directory = tmp_path / "run-1"
    resume.begin(directory, key="k", nonce="headrace-run-orphan")
    orphan = subprocess.Popen(["cat"], stdin=subprocess.PIPE, env={"HEADRACE_LAB_NONCE": "headrace-run-orphan"})
    resume.set_aside(directory)
    assert orphan.wait() == -signal.SIGKILL
    assert kill_by_nonce("headrace-run-orphan") == []
