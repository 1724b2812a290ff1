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
from doomed_lab import DISK_FULL

from headrace.errors import ConfigError
from headrace.lab.campaign import execute, provenance, resume
from headrace.lab.campaign.files import checksum
from headrace.lab.campaign.launchers.process import ProcessIdentity, kill_by_nonce, processes_with
from headrace.lab.campaign.target import TargetTable
from headrace.lab.metrics import result as metrics_result
from headrace.lab.records.results import CellStatus, study_from_json

READERS = ("lab/report/page.py", "lab/findings/compare.py", "lab/metrics/latency.py", "lab/campaign/study.py")
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


def until_done(out: Path, seed: int, *, full_disk: bool = False) -> int:
    """Lab after lab on one directory, each ended at a random instant, until one lives to the end; returns how many
    were ended.  After each of them every finished run has kept its bytes, and no server is left."""
    instants = random.Random(seed)
    kept: dict[str, dict[str, str]] = {}
    status, ended = -1, 0
    with Labs(out) as labs:
        while status != 0:
            # A whole campaign is some 600 events.  Short lives make no progress, so lives grow and the campaign ends.
            instant = instants.randint(1, 120 + 40 * ended)
            status, _ = labs.live(-instant if full_disk else instant)
            now = finished(out)
            assert {run: now.get(run) for run in kept} == kept, "a finished run changed"
            assert leftovers(out) == [], "a server outlived its lab"
            kept = now
            assert status in (0, DISK_FULL if full_disk else -signal.SIGKILL)
            ended += status != 0
        assert sorted(kept) == [f"cells/{run}" for run in RUNS]
        study = study_from_json((out / "study.json").read_text(), source="study")
        assert [[run.metrics["completed"] for run in cell.runs] for cell in study.cells] == [[6, 6], [6, 6]]
        assert labs.live(0)[0] == 0 and finished(out) == kept
    return ended


def test_killed_anywhere_and_resumed_until_done(tmp_path: Path) -> None:
    """kill -9 at random instants: in the end every run is measured once, and finished bytes never changed."""
    assert until_done(tmp_path / "campaign", seed=1) >= 2, "this seed tries too little"


def test_a_disk_that_is_full_anywhere_and_resumed_until_done(tmp_path: Path) -> None:
    """From a random instant on nothing can be written: the lab says so and ends, and goes on when there is room."""
    assert until_done(tmp_path / "campaign", seed=1, full_disk=True) >= 2, "this seed tries too little"


@pytest.mark.slow
@pytest.mark.parametrize(("full_disk", "wanted"), [(False, 100), (True, 25)], ids=["kill -9", "disk full"])
def test_many_instants(tmp_path: Path, full_disk: bool, wanted: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Campaign after campaign, until so many labs were ended."""
    ended = campaigns = 0
    while ended < wanted:
        campaigns += 1
        ended += until_done(tmp_path / str(campaigns), seed=100 + campaigns, full_disk=full_disk)
    with capsys.disabled():
        print(f"\n{ended} labs ended ({'disk full' if full_disk else 'kill -9'}) in {campaigns} campaigns")


@pytest.mark.slow
def test_a_small_file_system_that_fills_up_and_is_made_larger(capsys: pytest.CaptureFixture[str]) -> None:
    """A real one, of random size, in a name space of its own: what is written meets its end wherever that is."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no user name spaces here")
    script = Path(__file__).with_name("small_disk.py")
    done = subprocess.run(["unshare", "-rm", sys.executable, str(script), "25"], capture_output=True, text=True)
    with capsys.disabled():
        print("\n" + done.stdout.strip().splitlines()[-1] if done.stdout else "")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


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


def test_a_campaign_grows_and_measures_only_what_is_new(world: World) -> None:
    """More cells, more repeats, another title and other limits; the first cell was called "only"."""
    before = world.run([1])
    text = world.plan_text([1, 2], 2).replace("A scripted", "A grown").replace("frozen-after-s = 90", "")
    world.plan_text = lambda *_: text  # type: ignore[method-assign]
    study = world.run([1, 2], repeats=2)
    assert sorted(world.reporter.started) == ["seqs=1 run 2", "seqs=2 run 1", "seqs=2 run 2"]
    assert world.reporter.kept == 1 and study.title == "A grown server"
    kept = study.cells[0].runs[0]
    assert kept.metrics == before.cells[0].runs[0].metrics and kept.source == "cells/seqs=1/run-1"
    assert (world.out / "plan.toml").read_text() == text


def test_a_changed_flag_measures_its_cells_again(world: World) -> None:
    world.run([1, 2])
    text = world.plan_text([1, 2]).replace("max-num-batched-tokens = 64", "max-num-batched-tokens = 32")
    world.plan_text = lambda *_: text  # type: ignore[method-assign]
    world.run([1, 2])
    assert len(world.reporter.started) == 2 and "was measured with other settings" in world.reporter.lines[0]


def test_metrics_are_computed_from_the_records_whenever_the_study_is_built(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A definition changes: the next study has it, and nothing is measured again."""
    world.run([1])
    monkeypatch.setattr(metrics_result, "latency_summary", lambda records: {"new_metric": float(len(records))})
    assert world.run([1]).cells[0].runs[0].metrics["new_metric"] == 6
    assert world.reporter.started == []


def test_facts_in_which_runs_differ_are_stated_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three runs here, then one more on a machine with other processors."""
    here = {**execute.run_facts(), "cpu_model": "A", "git_revision": "old"}
    monkeypatch.setattr(execute, "run_facts", lambda: here)
    assert world.run([1, 2, 3]).facts == here
    monkeypatch.setattr(execute, "run_facts", lambda: {**here, "cpu_model": "B", "git_revision": "new"})
    study = world.run([1, 2, 3, 4])
    assert study.facts["cpu_model"] == "differs between runs: A (3 of 4); B (1 of 4)"
    assert study.facts["git_revision"] == "differs between runs: old (3 of 4); new (1 of 4)"
    assert study.facts["code_version"] == here["code_version"]
    warned = [cell.name for cell in study.cells if any("another machine" in text for text in cell.runs[0].warnings)]
    assert warned == ["seqs=4"]


def test_two_models_of_the_hub_are_two_runs() -> None:
    keys = {
        provenance.run_key({}, workload="w", target=TargetTable(model=model))
        for model in (None, "Qwen/Qwen3-0.6B", "Qwen/Qwen3-1.7B")
    }
    assert len(keys) == 3


def test_the_code_version_is_of_what_can_change_a_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "headrace"
    for name in ("core/scheduler.py", "lab/client/load.py", *READERS):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text("")
    monkeypatch.setattr(provenance.headrace, "__file__", str(package / "__init__.py"))

    def version_after(name: str) -> str:
        (package / name).write_text("# edited")
        return provenance.code_version.__wrapped__()

    before = provenance.code_version.__wrapped__()
    assert {version_after(name) for name in READERS} == {before}
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
