"""A small world for campaigns: plans over a scripted server, measured by the real client."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import headrace
from headrace.lab.campaign.execute import run_campaign
from headrace.lab.campaign.launchers.start import ProcessLauncher
from headrace.lab.campaign.plan import Plan, parse_plan
from headrace.lab.campaign.target import TargetTable
from headrace.lab.records.results import Cell, Study

FAKE_SERVER = Path(__file__).with_name("fake_server.py")
TOKENIZER = Path(headrace.__file__).parent / "engine" / "demo"

PLAN = """
name = "fake"
title = "A scripted server"
[target]
ready-timeout-s = 90
frozen-after-s = 90
[serve]
max-model-len = 512
max-num-batched-tokens = 64
[[sweep]]
max-num-seqs = {seats}
[workload]
num-prompts = 6
scale = 0.02
tokenizer = "{tokenizer}"
[run]
repeats = {repeats}
warmup = 0
"""


@dataclass
class Silent:
    """A reporter that remembers what it was told."""

    lines: list[str] = field(default_factory=list)
    kept: int = 0

    def begin(self, runs: int, kept: int) -> None:
        self.kept = kept

    def note(self, text: str) -> None:
        self.lines.append(text)

    def starting(self, label: str, number: int) -> None:
        self.lines.append(f"starting {label}")

    def waiting(self, label: str, phase: str) -> None: ...

    def measuring(self, label: str, ready_s: float) -> None: ...

    def progress(self, label: str, progress: Any) -> None: ...

    def ended(self, label: str, text: str, *, good: bool) -> None: ...

    def close(self) -> None: ...

    @property
    def started(self) -> list[str]:
        return [line.removeprefix("starting ") for line in self.lines if line.startswith("starting ")]


@dataclass
class World:
    """`script` maps a value of --max-num-seqs to a behaviour of the fake server."""

    out: Path
    script: dict[str, str] = field(default_factory=dict)
    reporter: Silent = field(default_factory=Silent)

    def plan_text(self, seats: list[int], repeats: int = 1) -> str:
        return PLAN.format(seats=seats, tokenizer=TOKENIZER, repeats=repeats)

    def plan(self, seats: list[int], repeats: int = 1) -> Plan:
        return parse_plan(self.plan_text(seats, repeats), source="plan.toml", directory=self.out)

    def launcher(self, **changes: Any) -> ProcessLauncher:
        """`pick_port` is the launcher's, everything else the target's."""
        command = (sys.executable, str(FAKE_SERVER), "--script", json.dumps(self.script))
        ports = {"pick_port": changes.pop("pick_port")} if "pick_port" in changes else {}
        target = TargetTable(**{"command": command, "ready-timeout-s": 90.0, **changes})
        return ProcessLauncher(target, "fake", **ports)

    def run(
        self, seats: list[int], *, repeats: int = 1, launcher: ProcessLauncher | None = None, **options: Any
    ) -> Study:
        self.reporter = Silent()
        return run_campaign(
            self.plan(seats, repeats),
            self.plan_text(seats, repeats),
            self.out,
            reporter=self.reporter,
            launcher=launcher or self.launcher(),
            **options,
        )

    def cell(self, behaviour: str, **changes: Any) -> Cell:
        """The cell of a campaign whose only server behaves so."""
        self.script = {"1": behaviour}
        [cell] = self.run([1], launcher=self.launcher(**changes)).cells
        return cell
