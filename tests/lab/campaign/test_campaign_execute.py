"""Whole campaigns over a scripted server: what succeeds is sealed, what fails is a classified result."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from campaign_world import World

from headrace.errors import ConfigError, LaunchError
from headrace.lab.campaign.execute import run_campaign
from headrace.lab.campaign.files import campaign_lock
from headrace.lab.campaign.launchers import probe
from headrace.lab.campaign.launchers.process import ProcessIdentity, kill_by_nonce
from headrace.lab.campaign.plan import parse_plan
from headrace.lab.records.results import CellStatus, study_from_json
from headrace.lab.records.store import read_run


def seal(world: World, run: str = "only/run-1") -> dict:
    return json.loads((world.out / "cells" / run / "run.json").read_text())


def test_a_whole_campaign(world: World) -> None:
    """Two repeats of two legal cells, and one illegal cell that is never launched."""
    study = world.run([1, 2, 65], repeats=2)
    assert [(cell.name, cell.status, len(cell.runs)) for cell in study.cells] == [
        ("seqs=1", CellStatus.OK, 2),
        ("seqs=2", CellStatus.OK, 2),
        ("seqs=65", CellStatus.ILLEGAL, 0),
    ]
    assert study.cells[2].rule == "R2" and "seqs=65" not in {p.name for p in (world.out / "cells").iterdir()}
    first = study.cells[0].runs[0]
    assert first.metrics["completed"] == 6 and first.source == "cells/seqs=1/run-1"
    assert first.settings["max_num_seqs"] == 1 and first.settings["policy"] == "v1" and first.settings["repeat"] == 1
    assert first.settings["version"] == "fake-1"
    assert study_from_json((world.out / "study.json").read_text(), source="study") == study
    left = {path.name for path in (world.out / "cells" / "seqs=1" / "run-1").iterdir()}
    scrapes = {"metrics-after.txt", "metrics-before.txt", "metrics-during.jsonl"}
    assert left == {"client", "run.json", "server-info.json", "server.log", "state.json", *scrapes}


def test_repeats_that_would_end_too_late_are_left_out_for_all_cells(world: World) -> None:
    """The first repeat always runs; a later one must fit by the pace so far, and a finished one stays."""
    for minutes, runs in ((1e-4, 1), (60, 2)):
        text = world.plan_text([1, 2], repeats=2) + f"max-minutes = {minutes}\n"
        plan = parse_plan(text, source="plan.toml", directory=world.out)
        out = world.out / f"{minutes}"
        study = run_campaign(plan, text, out, reporter=world.reporter, launcher=world.launcher())
        assert [len(cell.runs) for cell in study.cells] == [runs, runs]
        assert {cell.status for cell in study.cells} == {CellStatus.OK}
    assert [line for line in world.reporter.lines if "max-minutes" in line] == [
        "repeat 2 would end after max-minutes = 0.0001: left out"
    ]


def test_every_cell_is_sent_the_same_requests(world: World) -> None:
    world.run([1, 2])
    manifests = [read_run(world.out / "cells" / cell / "run-1" / "client")[0] for cell in ("seqs=1", "seqs=2")]
    assert manifests[0]["workload_sha256"] == manifests[1]["workload_sha256"]


def test_running_it_again_measures_nothing_again(world: World) -> None:
    study = world.run([1, 2])
    assert len(world.reporter.started) == 2
    assert world.run([1, 2]) == study
    assert world.reporter.started == [] and world.reporter.kept == 2


@pytest.mark.parametrize(
    ("behaviour", "kind", "said"),
    [
        ("exit", "crash", "the server exited with code 1 before it was ready: ValueError: this cannot work"),
        ("out of memory", "oom", "exited with code 1 before it was ready: MemoryError"),
        ("wrong model", "wrong_model", "the server serves somebody-else instead of fake"),
        ("dies", "crash", "the server exited with code 3 while it was measured: RuntimeError: the roof fell in"),
        ("500", "protocol", "not one request was served: http_5xx"),
    ],
)
def test_a_failing_server_is_a_classified_failure(world: World, behaviour: str, kind: str, said: str) -> None:
    cell = world.cell(behaviour)
    assert cell.status is CellStatus.FAILED and cell.runs == ()
    assert f"({kind})" in (cell.reason or "") and said in (cell.reason or "")
    sealed = seal(world)
    assert sealed["failure"]["kind"] == kind
    assert not ProcessIdentity.from_json(sealed["server"]["process"]).alive()


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [("never ready", "it listens but does not answer /health with 200"), ("never listens", "it does not listen yet")],
)
def test_a_server_that_is_never_ready(world: World, behaviour: str, said: str) -> None:
    cell = world.cell(behaviour, **{"ready-timeout-s": 1.0})
    assert f"(not_ready): the server was not ready within 1 s: {said}" in (cell.reason or "")


def test_a_server_that_freezes_while_it_is_measured_is_ended(world: World) -> None:
    plan = world.plan_text([1]).replace("frozen-after-s = 90", "frozen-after-s = 0.5")
    world.plan_text = lambda *_: plan  # type: ignore[method-assign]
    reason = world.cell("freezes").reason or ""  # whichever is noticed first: it answers nobody, or it serves nobody
    assert "(frozen)" in reason and "for 0.5 s" in reason


def test_a_run_that_takes_too_long_is_ended(world: World) -> None:
    plan = world.plan_text([1]).replace("warmup = 0", "warmup = 0\ntimeout-s = 0.5")
    world.plan_text = lambda *_: plan  # type: ignore[method-assign]
    assert "(timeout): the run took longer than 0.5 s" in (world.cell("freezes").reason or "")


def test_a_refusal_that_only_the_server_could_know_makes_the_cell_illegal(world: World) -> None:
    cell = world.cell("refuse")
    assert (cell.status, cell.rule) == (CellStatus.ILLEGAL, "R10")


def test_settings_that_the_server_changed_are_substitutions(world: World) -> None:
    plan = world.plan_text([1]).replace("max-model-len = 512", "max-model-len = 512\nblock-size = 16")
    world.plan_text = lambda *_: plan  # type: ignore[method-assign]
    cell = world.cell("other block size")
    assert cell.status is CellStatus.SUBSTITUTED and cell.substituted == {"block_size": (16, 32)}
    assert cell.reason == "The server runs with --block-size 32 instead of 16."
    assert cell.settings["block_size"] == cell.runs[0].settings["block_size"] == 32


def test_what_the_plan_left_to_the_server_is_in_the_result(world: World) -> None:
    plan = world.plan_text([1]).replace("max-model-len = 512", 'max-model-len = 512\ndtype = "auto"')
    world.plan_text = lambda *_: plan  # type: ignore[method-assign]
    cell = world.cell("good")
    settings = cell.runs[0].settings
    assert (cell.settings["dtype"], settings["dtype"]) == ("float32", "float32")
    assert (settings["num_blocks"], settings["block_size"], settings["max_num_seqs"]) == (100, 16, 1)
    assert cell.status is CellStatus.OK and "auto" not in settings.values()


def test_what_the_server_counted_is_in_the_result(world: World) -> None:
    """The scripted server counts every request as a preemption."""
    assert world.cell("good").runs[0].metrics["server_num_preemptions"] == 6


def test_one_failing_cell_does_not_end_the_campaign(world: World) -> None:
    world.script = {"2": "exit"}
    study = world.run([1, 2, 3])
    assert [cell.status for cell in study.cells] == [CellStatus.OK, CellStatus.FAILED, CellStatus.OK]
    assert world.run([1, 2, 3]) == study and world.reporter.started == []  # a failure is a result
    world.script = {}
    again = world.run([1, 2, 3], retry_failed=True)
    assert [cell.status for cell in again.cells] == [CellStatus.OK] * 3 and world.reporter.started == ["seqs=2"]
    assert (world.out / "cells" / "seqs=2" / "run-1.attempt-1" / "run.json").exists()


@pytest.mark.parametrize("name", ["HEADRACE_API_KEY", "VLLM_API_KEY"])
def test_a_key_in_the_environment_is_not_the_servers(world: World, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "secret")
    assert world.cell("good").status is CellStatus.OK
    assert "secret" not in (world.out / "study.json").read_text()


def test_a_variable_that_changes_results_is_stated_and_makes_another_run(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("EDITOR", "ed")
    assert world.run([1]).facts["environment"]["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("EDITOR", "vi")
    world.run([1])
    assert world.reporter.started == []
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    world.run([1])
    assert world.reporter.started == ["only"] and "environment variables" in world.reporter.lines[0]


def test_what_a_server_spawned_ends_with_it(world: World) -> None:
    assert world.cell("leaves a worker").status is CellStatus.OK
    assert kill_by_nonce(seal(world)["server"]["nonce"]) == []  # nobody was left to kill


class Thief(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps({"data": [{"id": "stolen"}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None: ...


def test_another_server_on_the_port_is_not_taken_for_ours(world: World) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Thief) as thief:
        threading.Thread(target=thief.serve_forever, daemon=True).start()
        taken = thief.server_address[1]
        ports = iter([taken, probe.free_port()])
        assert world.cell("good", pick_port=lambda: next(ports)).status is CellStatus.OK

        world.out = world.out.with_name("always")
        cell = world.cell("good", pick_port=lambda: taken)
        assert cell.status is CellStatus.FAILED and seal(world)["failure"]["kind"] == "port"
        thief.shutdown()


def test_two_labs_in_one_directory_are_refused(world: World) -> None:
    world.run([1])
    with (
        campaign_lock(world.out),
        pytest.raises(ConfigError, match=r"is in use by another headrace run \(process \d+ on .*give another --out"),
    ):
        world.run([1])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('name = "fake"', 'name = "other"'), "holds the campaign 'fake': give another --out"),
        (("num-prompts = 6", "num-prompts = 7"), "holds runs of another workload"),
    ],
)
def test_another_campaign_or_workload_in_the_directory_is_refused(
    world: World, change: tuple[str, str], said: str
) -> None:
    world.run([1])
    text = world.plan_text([1]).replace(*change)
    world.plan_text = lambda *_: text  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match=said):
        world.run([1])
    assert (world.out / "plan.toml").read_text() != text


def test_a_directory_with_other_things_is_refused(world: World) -> None:
    world.out.mkdir()
    (world.out / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match=r"holds other things \(thesis\.txt\) and no campaign"):
        world.run([1])


def test_a_full_disk_ends_the_campaign_and_the_same_command_resumes(world: World) -> None:
    def full(*_: object, **__: object) -> None:
        raise LaunchError("the run cannot be written: No space left on device", kind="disk")

    with pytest.raises(LaunchError, match="No space left on device"):
        world.run([1, 2], measure=full)
    assert all(cell.status is CellStatus.OK for cell in world.run([1, 2]).cells)


def test_ctrl_c_stops_the_server_and_keeps_what_is_finished(world: World) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        world.run([1], measure=interrupted)
    state = json.loads((world.out / "cells" / "only" / "run-1" / "state.json").read_text())
    assert not ProcessIdentity.from_json(state["server"]).alive()
    assert world.run([1]).cells[0].status is CellStatus.OK
    assert [path.name for path in sorted((world.out / "cells" / "only").iterdir())] == ["run-1", "run-1.attempt-1"]


def test_an_unreadable_place_is_one_sentence(world: World, tmp_path: Path) -> None:
    world.out = tmp_path / "file" / "campaign"
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file, not a directory"):
        world.run([1])
