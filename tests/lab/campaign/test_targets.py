"""Targets other than headrace's own server, started (or found) for real: a scripted server plays each of them."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest
from campaign_world import FAKE_SERVER, Silent, World

from headrace.errors import LaunchError
from headrace.lab.campaign import memory, resume
from headrace.lab.campaign.execute import run_campaign
from headrace.lab.campaign.launchers.phases import phase
from headrace.lab.campaign.memory import MemoryUse, wait_for_release
from headrace.lab.campaign.plan import parse_plan
from headrace.lab.records.results import CellStatus, Study

FAKE = json.dumps([sys.executable, str(FAKE_SERVER)])


def run(world: World, target: str, seats: list[int], sweep: str = "", run: str = "") -> Study:
    """A campaign on the plan's own launchers: `target` is the text of its [target] and [targets.*] tables."""
    text = world.plan_text(seats).replace("[target]\nready-timeout-s = 90\nfrozen-after-s = 90", target)
    text = text.replace("[[sweep]]\n", f"[[sweep]]\n{sweep}").replace("warmup = 0", f"warmup = 0\n{run}")
    plan = parse_plan(text, source="plan.toml", directory=world.out)
    world.reporter = Silent()
    return run_campaign(plan, text, world.out, reporter=world.reporter)


def test_vllm_and_any_command_side_by_side(world: World, tmp_path: Path) -> None:
    """One study, a cell a target, each started by its own command line."""
    model = tmp_path / "small"
    model.mkdir()
    (model / "config.json").write_text("{}")
    study = run(
        world,
        f'[target]\nmodel = "{model}"\n[targets.vllm]\nkind = "vllm"\ncommand = {FAKE}\n[targets.other]\n'
        f'kind = "command"\ncommand = {FAKE[:-1]}, "--port", "{{port}}", "--served-model-name", "{{name}}"]\n',
        [1],
        'target = ["vllm", "other"]\n',
    )
    assert [(cell.name, cell.status) for cell in study.cells] == [("vllm", CellStatus.OK), ("other", CellStatus.OK)]
    assert {cell.runs[0].settings["target"] for cell in study.cells} == {"vllm", "other"}
    # The second one took no nonce as a name: a process of ours that holds the port's socket vouches for it.
    names = [
        json.loads((world.out / "cells" / c / "run-1" / "server-info.json").read_text()) for c in ("vllm", "other")
    ]
    assert [len(info["/v1/models"]["data"]) for info in names] == [2, 1]


def test_a_server_that_runs_already_is_measured_and_left_alone(world: World, tmp_path: Path) -> None:
    other = World(tmp_path / "other", {"1": "good"})
    server = other.launcher().start({"max-num-seqs": 1}, log=tmp_path / "log", nonce="headrace-run-other")
    try:
        study = run(world, f'[target]\nkind = "url"\nurl = "{server.url}"\nmodel = "fake"', [1, 2])
        # What it runs with is its own affair, and told: the second cell wanted two seats.
        assert [cell.status for cell in study.cells] == [CellStatus.OK, CellStatus.SUBSTITUTED]
        assert server.healthy(timeout_s=5), "somebody else's server was ended"
        settings = study.cells[0].runs[0].settings
        assert settings["model"] == "fake" and "foreign_cpu_share" not in settings
        wrong = run(World(tmp_path / "w"), f'[target]\nkind = "url"\nurl = "{server.url}"\nmodel = "gpt"', [1])
        assert "serves fake, headrace-run-other instead of gpt" in (wrong.cells[0].reason or "")
    finally:
        server.stop(grace_s=5)


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN], ids=["", "in the background"])
def test_a_silent_server_that_is_not_ours_ends_the_run_and_not_itself(
    handler: object, world: World, tmp_path: Path
) -> None:
    before = signal.signal(signal.SIGINT, handler)  # type: ignore[arg-type]
    other = World(tmp_path / "other", {"1": "hangs in mid-stream"})
    server = other.launcher().start({"max-num-seqs": 1}, log=tmp_path / "log", nonce="headrace-run-silent")
    try:
        target = f'[target]\nkind = "url"\nurl = "{server.url}"\nfrozen-after-s = 1.0'
        study = run(world, target, [1], run="scrape-every-s = 0.1")
        assert "(frozen)" in (study.cells[0].reason or "") and server.healthy(timeout_s=5)
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)
        server.stop(grace_s=0.5)


def test_nobody_at_the_address(world: World) -> None:
    study = run(world, '[target]\nkind = "url"\nurl = "http://127.0.0.1:9"\nready-timeout-s = 0.2', [1])
    assert "(not_ready): nobody answers /health or /v1/models" in (study.cells[0].reason or "")


DOCKER = """#!/bin/sh
# Plays docker: `run` becomes the server itself on the published port, `rm` ends it by its name.
echo "$@" >>"{log}"
case "$1" in
image) echo sha256:0123; exit 0 ;;
rm) echo "Error: No such container: $3" >&2; exit 1 ;;
esac
for word in "$@"; do case "$word" in 127.0.0.1:*) port=${{word#127.0.0.1:}}; port=${{port%%:*}} ;; esac; done
while [ "$1" != an/image:1 ]; do shift; done
shift
exec {python} {server} "$@" --port "$port"
"""


def test_docker_is_asked_to_run_and_to_remove(world: World, tmp_path: Path) -> None:
    docker, log = tmp_path / "docker", tmp_path / "docker.log"
    docker.write_text(DOCKER.format(log=log, python=sys.executable, server=FAKE_SERVER))
    docker.chmod(0o755)
    study = run(
        world, f'[target]\nkind = "docker"\nmodel = "owner/fake"\nimage = "an/image:1"\ncommand = ["{docker}"]', [1]
    )
    assert study.cells[0].status is CellStatus.OK, study.cells[0].reason
    asked = [line.split() for line in log.read_text().splitlines()]
    nonce = json.loads((world.out / "cells" / "only" / "run-1" / "run.json").read_text())["server"]["nonce"]
    assert ["run", "--rm", "--name", nonce] in [words[:4] for words in asked]
    assert ["rm", "--force", nonce] in asked and study.facts["server_version"] == "sha256:0123"
    state = json.loads((world.out / "cells" / "only" / "run-1" / "state.json").read_text())
    assert state["container_end"] == [str(docker), "rm", "--force", nonce]  # a lab that is killed leaves this behind


def test_only_the_runs_own_container_is_ever_removed(tmp_path: Path) -> None:
    """A state file is data: what it names is run only when it can end nothing but this run's container."""
    directory, mark = tmp_path / "run-1", tmp_path / "mark"
    resume.begin(directory, key="k", nonce="headrace-run-9")
    state = json.loads((directory / "state.json").read_text())
    (directory / "state.json").write_text(json.dumps({**state, "container_end": ["touch", str(mark)]}))
    resume.set_aside(directory)
    assert not mark.exists()


def test_several_runs_on_one_server(world: World) -> None:
    """Restarts and runs on them are levels of their own: other requests in each run, the same ones on every server."""
    text = world.plan_text([1, 2], repeats=2).replace("warmup = 0", "warmup = 0\nruns-per-server = 2")
    world.plan_text = lambda *_: text  # type: ignore[method-assign]
    study = world.run([1, 2], repeats=2)
    assert len(world.reporter.started) == 4
    for cell in study.cells:
        settings = [(run.settings["repeat"], run.settings["run_on_server"], run.settings["seed"]) for run in cell.runs]
        assert settings == [(1, 1, 0), (1, 2, 1), (2, 1, 0), (2, 2, 1)]
    assert world.run([1, 2], repeats=2) == study and world.reporter.started == []


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("", "starting"),
        ("INFO [gpu_model_runner.py:1] Starting to load model x...", "loading the model"),
        ("Starting to load model\nLoading weights took 3 s\nGPU KV cache size: 1,000 tokens", "preparing the KV cache"),
        ("Starting to load model\nCapturing CUDA graphs (decode): 10%", "compiling"),
        ("Load weight begin. avail mem=70 GB\nCapture cuda graph begin. This can take", "compiling"),
    ],
)
def test_a_log_tells_what_a_server_is_doing(log: str, said: str) -> None:
    assert phase(log) == said


class Gpus:
    """GPUs whose memory comes back after so many questions."""

    def __init__(self, used: list[int]) -> None:
        self.used = used

    def used_bytes(self) -> list[int]:
        return [self.used.pop(0) if len(self.used) > 1 else self.used[0]]


def test_the_next_server_waits_until_memory_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_POLL_S", 0.0)
    gib = 1 << 30
    slow = Gpus([70 * gib, 70 * gib, 40 * gib, gib])
    wait_for_release(MemoryUse((gib,), 0), slow, patience_s=60)  # type: ignore[arg-type]
    assert slow.used == [gib]
    with pytest.raises(LaunchError, match="of GPU memory are still taken") as error:
        wait_for_release(MemoryUse((gib,), 0), Gpus([70 * gib]), patience_s=0)  # type: ignore[arg-type]
    assert error.value.kind == "memory"
