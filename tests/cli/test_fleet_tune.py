"""`headrace fleet` and `headrace tune`: answers as text and JSON, and one sentence for what cannot be answered."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from headrace.cli.main import run
from headrace.lab.sim import FrontEnd, StepCost
from headrace.lab.sim.calibration import Calibration, save_calibration
from headrace.lab.sim.fit import Fit

PLAN = """
name = "small"
title = "Two budgets"
[serve]
max-model-len = 512
max-num-seqs = 16
num-gpu-blocks-override = 1024
[[sweep]]
max-num-batched-tokens = [8, 64, 256]
[workload]
dataset = "random"
num-prompts = 60
random-input-len = 60
random-output-len = 20
"""


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    (tmp_path / "plan.toml").write_text(PLAN)
    fit = Fit(StepCost(base_s=0.01, token_s=1e-4), FrontEnd(), ("base_s",), np.zeros((1, 1)))
    save_calibration(Calibration(fit, "records", ("a run",)), tmp_path / "cost.json")
    return tmp_path / "plan.toml"


def fleet(plan: Path, *more: str) -> int:
    cost = str(plan.with_name("cost.json"))
    return run(["fleet", str(plan), "--calibration", cost, "--over", "here", "--seeds", "2", *more])


def test_a_fleet_for_a_rate(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("--goodput", "ttft:1000", "tpot:40", "--share", "0.9", "--rate", "60", "--price", "2.5")
    assert fleet(plan, *asked, "--json", "-") == 0
    found = json.loads(capsys.readouterr().out)
    assert [cell["cell"] for cell in found["cells"]] == ["64", "256"]  # 8 tokens are fewer than 16 seats
    one = next(cell for cell in found["cells"] if cell["cell"] == found["best"])
    [need] = found["fleets"]
    assert need["replicas"] >= 60 / one["saturation"] - 1 and need["cost_an_hour"] == 2.5 * need["replicas"]
    assert fleet(plan, *asked) == 0
    assert f"60 requests/s need {need['replicas']} replicas of {found['best']}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--goodput", "ttft:0.01", "--rate", "5"], "even a lone replica"),
        (["--goodput", "speed:3"], "--goodput takes NAME:MILLISECONDS"),
        (["--goodput", "ttft:1000", "--rate", "-1"], "--rate takes requests/s above 0"),
        (["--goodput", "ttft:1000", "--share", "1.5"], "between 0 and 1"),
        (["--goodput", "ttft:1000", "--routing", "magic"], "--routing 'magic' is not known"),
        (["--goodput", "ttft:1000", "--price", "0"], "--price 0 must be above 0"),
    ],
)
def test_what_a_fleet_cannot_be_sized_for(
    plan: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    assert fleet(plan, *flags) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--maximize", "mean_ttft_ms"], "--maximize takes a throughput"),
        (["--maximize", "request_goodput"], "goodput needs the bounds of a request"),
        (["--goal", "p99_ttft_ms"], "--goal takes METRIC:BOUND"),
        (["--tolerance", "2"], "--tolerance 2 must be between 0 and 1"),
        (["--max-runs", "0"], "--max-runs 0 must be at least 1"),
    ],
)
def test_what_cannot_be_tuned(plan: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str) -> None:
    assert run(["tune", str(plan), "--out", str(plan.with_name("out")), *flags]) == 2
    assert words in capsys.readouterr().err
    assert not plan.with_name("out").exists()
