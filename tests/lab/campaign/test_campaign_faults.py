"""Every way in which a server may misbehave, in one campaign: each ends with its name, and the campaign goes on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from campaign_world import World

from headrace.lab.campaign.launchers import probe
from headrace.lab.campaign.launchers.process import ProcessIdentity, processes_with
from headrace.lab.records.results import Cell, CellStatus, Study


@dataclass(frozen=True)
class Fault:
    """`kind` is None where the run is good all the same (`status` then says what became of the cell)."""

    behaviour: str
    kind: str | None
    said: str = ""
    status: CellStatus = CellStatus.FAILED


GOOD, LESS = CellStatus.OK, CellStatus.DEGRADED
FAULTS = (
    # before it is ready
    Fault("exit", "crash", "exited with code 1 before it was ready: ValueError: this cannot work"),
    Fault("refuse", "refused", "R10", CellStatus.ILLEGAL),
    Fault("port taken", "port", "address already in use"),
    Fault("disk full", "disk", "No space left on device"),
    Fault("out of memory", "oom", "MemoryError"),
    Fault("says out of memory and hangs", "oom", "it ran out of memory"),
    Fault("gives up and hangs", "crash", "and did not exit: ValueError: no such head size"),
    Fault("never listens", "not_ready", "it does not listen yet"),
    Fault("never ready", "not_ready", "it listens but does not answer /health with 200"),
    Fault("loads for ever", "not_ready", "its log: still loading the model"),
    Fault("wrong model", "wrong_model", "serves somebody-else instead of fake"),
    # while it is measured
    Fault("dies", "crash", "exited with code 3 while it was measured: RuntimeError: the roof fell in"),
    Fault("is killed", "crash", "was ended by signal 9 "),
    Fault("dies of memory", "oom", "torch.OutOfMemoryError"),
    Fault("freezes", "frozen", "left /health unanswered"),
    Fault("hangs in mid-stream", "frozen", "has neither ended one nor counted a token, though it answers /health"),
    Fault("never ends", "timeout", "the run took longer than"),
    Fault("500", "protocol", "http_5xx, "),
    Fault("401", "protocol", "http_4xx, "),
    Fault("429", "protocol", "http_4xx, "),
    Fault("completions are missing", "protocol", "http_4xx, 404 page not found"),
    Fault("an error page", "protocol", "no message with choices"),
    Fault("redirects", "protocol", "not one request was served"),
    Fault("resets", "protocol", "not one request was served"),
    Fault("garbage", "protocol", "not one request was served"),
    Fault("half a character", "protocol", "not one request was served"),
    Fault("truncated JSON", "protocol", "is not a JSON object"),
    Fault("no choices", "protocol", "no message with choices"),
    Fault("empty answers", "protocol", "an empty body"),
    Fault("closes early", "protocol", "disconnected"),
    Fault("error in the middle", "protocol", "server_error_event"),
    # it serves, after all
    Fault("fails one in three", None, "served 4 of 6 requests", LESS),
    Fault("no usage", None, "", GOOD),
    Fault("ignores SIGTERM", None, "", GOOD),
    Fault("leaves a worker", None, "", GOOD),
    Fault("floods its log", None, "", GOOD),
    Fault("good", None, "", GOOD),
)
# One of each class that no patience is needed for; the others are in the slow checks.
SAMPLE = ("exit", "refuse", "out of memory", "wrong model", "dies", "500", "garbage", "fails one in three")
QUICK = tuple(fault for fault in FAULTS if fault.behaviour in SAMPLE)

# What a busy machine may need for a start, for a sign of life, and for six short requests.
READY_S, FROZEN_S, TIMEOUT_S, GRACE_S = 20.0, 6.0, 15.0, 0.5


def campaign(world: World, faults: tuple[Fault, ...]) -> Study:
    seats = list(range(1, len(faults) + 1))
    world.script = {str(number): fault.behaviour for number, fault in zip(seats, faults, strict=True)}
    limits = f"ready-timeout-s = {READY_S}\nfrozen-after-s = {FROZEN_S}\nstop-grace-s = {GRACE_S}"
    text = World.plan_text(world, seats).replace("ready-timeout-s = 90\nfrozen-after-s = 90", limits)
    text = text.replace("warmup = 0", f"warmup = 0\ntimeout-s = {TIMEOUT_S}\nscrape-every-s = 0.2")
    world.plan_text = lambda *_: text  # type: ignore[method-assign]
    return world.run(seats, launcher=world.launcher(**{"ready-timeout-s": READY_S}))


def wrong(world: World, fault: Fault, cell: Cell) -> list[str]:
    """What is not as the table says; empty when all is well."""
    seal = json.loads((world.out / "cells" / cell.name / "run-1" / "run.json").read_text())
    kind = (seal["failure"] or {}).get("kind")
    found = [] if cell.status is fault.status else [f"status {cell.status}"]
    found += [] if kind == fault.kind else [f"class {kind}"]
    found += [] if fault.said in (cell.reason or "") else [f"reason {cell.reason}"]
    found += ["its process lives"] * ProcessIdentity.from_json(seal["server"]["process"]).alive()
    found += ["processes are left"] * bool(processes_with(seal["server"]["nonce"]))
    return [f"{fault.behaviour}: {text}" for text in found]


@pytest.mark.parametrize("faults", [QUICK, pytest.param(FAULTS, marks=pytest.mark.slow)], ids=["quick", "all"])
def test_every_fault_ends_with_its_name_and_the_campaign_goes_on(world: World, faults: tuple[Fault, ...]) -> None:
    study = campaign(world, faults)
    assert [text for pair in zip(faults, study.cells, strict=True) for text in wrong(world, *pair)] == []
    assert campaign(world, faults) == study and world.reporter.started == []  # each of them is a result


def test_the_table_is_long_enough() -> None:
    assert sum(fault.kind is not None for fault in FAULTS) >= 20
    assert len({fault.behaviour for fault in FAULTS}) == len(FAULTS)


def test_a_port_that_another_live_server_has_is_not_ours(world: World, tmp_path: Path) -> None:
    """Health is answered, and by the wrong process: three attempts on its port, then the class is "port"."""
    host = World(tmp_path / "host", {"1": "good"})
    squatter = host.launcher().start({"max-num-seqs": 1}, log=tmp_path / "log", nonce="headrace-run-squatter")
    port = int(squatter.url.rpartition(":")[2])
    try:
        cell = world.cell("good", pick_port=lambda: port)
        assert cell.status is CellStatus.FAILED and "(port)" in (cell.reason or "")
        assert probe.answers(squatter.url)
    finally:
        squatter.stop(grace_s=5)
