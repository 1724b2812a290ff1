"""`headrace run`: what it says before, at the end, and when it is wrong or interrupted."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import headrace
from headrace.cli.main import run

ROOT = Path(__file__).resolve().parents[2]
DEMO_PLAN = ROOT / "examples" / "demo-plan.toml"
FAKE_SERVER = ROOT / "tests" / "lab" / "campaign" / "fake_server.py"

PLAN = f"""
name = "small"
title = "A <small> plan"
[serve]
max-model-len = 512
max-num-seqs = 8
[[sweep]]
enable-chunked-prefill = [true, false]
max-num-batched-tokens = [4, 64, 512]
[workload]
num-prompts = 5
scale = 0.02
tokenizer = "{Path(headrace.__file__).parent / "engine" / "demo"}"
[run]
warmup = 0
"""


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "plan.toml"
    path.write_text(PLAN)
    return path


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Campaigns start the scripted server in place of `headrace serve`."""
    from headrace.lab.campaign import execute
    from headrace.lab.campaign.launchers.running import launcher_for
    from headrace.lab.campaign.launchers.start import Launcher
    from headrace.lab.campaign.target import TargetTable

    def launcher(target: TargetTable, name: str) -> Launcher:
        return launcher_for(target.model_copy(update={"command": (sys.executable, str(FAKE_SERVER))}), name)

    monkeypatch.setattr(execute, "launcher_for", launcher)


def test_a_dry_run_says_which_cells_are_legal_and_why_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["run", str(DEMO_PLAN), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines if line.startswith("  o")] == [
        ["on-16", "v0-chunked", "illegal"],
        ["on-32", "v0-chunked", "illegal"],
        ["on-64", "v0-chunked", "legal"],
        ["on-128", "v0-chunked", "legal"],
        ["on-512", "v0-chunked", "legal"],
        ["on-1024", "v0-chunked", "legal"],
        ["on-2048", "v0-chunked", "legal"],
        ["off-64", "v0", "illegal"],
        ["off-128", "v0", "illegal"],
        ["off-512", "v0", "legal"],
        ["off-1024", "v0", "legal"],
        ["off-2048", "v0", "legal"],
    ]
    assert any("R2: --max-num-batched-tokens is 16 but must be at least 64" in line for line in lines)
    assert "8 of 12 cells are legal" in " ".join(lines)


def test_a_campaign_ends_with_a_study_a_report_and_a_short_summary(
    plan: Path, tmp_path: Path, scripted: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(["run", str(plan), "--out", str(out), "--beside", "published"]) == 0
    text = capsys.readouterr().out
    summary = text[text.rindex("A <small> plan (measured)") :].splitlines()  # warnings about a run may stand above
    assert 0 < len(summary) <= 30
    statuses = {cell["name"]: cell["status"] for cell in json.loads((out / "study.json").read_text())["cells"]}
    assert statuses == {
        "on-4": "illegal",
        "on-64": "ok",
        "on-512": "ok",
        "off-4": "illegal",
        "off-64": "illegal",
        "off-512": "ok",
    }
    assert (out / "plan.toml").read_text() == PLAN
    assert "<h1>A &lt;small&gt; plan</h1>" in (out / "report.html").read_text()


def test_without_a_report(plan: Path, tmp_path: Path, scripted: None, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run(["run", str(plan), "--out", str(out), "--no-report"]) == 0
    assert not (out / "report.html").exists()
    assert str(out / "study.json") in capsys.readouterr().out.replace("\n", "")


def test_a_plan_without_a_legal_cell_is_exit_code_4(
    plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan.write_text(PLAN.replace("[4, 64, 512]", "[4]"))
    assert run(["run", str(plan), "--out", str(tmp_path / "out"), "--no-report"]) == 4
    assert "on: illegal. R2: --max-num-batched-tokens is 4" in capsys.readouterr().out.replace("\n", " ")
    assert run(["run", str(plan), "--dry-run"]) == 4


@pytest.mark.parametrize(
    ("change", "arguments", "said"),
    [
        (("num-prompts", "num-promts"), [], "[workload] has no key 'num-promts'; did you mean 'num-prompts'?"),
        (("[serve]", '[target]\nmodel = "./none"\n[serve]'), ["--dry-run"], "[target] model: there is no directory"),
        (("", ""), ["--beside", "nowhere"], "nowhere does not exist"),
        (("", ""), ["--repeats", "3"], "--repeats"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    plan: Path, change: tuple[str, str], arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plan.write_text(PLAN.replace(*change))
    assert run(["run", str(plan), "--out", str(plan.parent / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("headrace run: ") and said in error and error.count("\n") == 1
    assert not (plan.parent / "out").exists()


INTERRUPTED = """
import sys
from headrace.cli.main import run
from headrace.lab.campaign import execute
launcher = execute.launcher_for
command = (sys.executable, sys.argv[1], "--script", '{"8": "freezes"}')
execute.launcher_for = lambda target, name: launcher(target.model_copy(update={"command": command}), name)
sys.exit(run(["run", *sys.argv[2:]]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_campaign_says_how_to_go_on(plan: Path, tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", INTERRUPTED, str(FAKE_SERVER), str(plan), "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as lab:
        assert lab.stdout is not None and lab.stderr is not None
        assert any("measuring" in line for line in lab.stdout)
        lab.send_signal(number)
        said = lab.stdout.read()
        assert lab.wait() == 130, lab.stderr.read()
    assert "finished runs are kept" in said and "the same command resumes" in said.replace("\n", " ")
    [state] = out.glob("cells/*/run-1/state.json")
    server = json.loads(state.read_text())["server"]
    assert not Path(f"/proc/{server['pid']}").exists()
