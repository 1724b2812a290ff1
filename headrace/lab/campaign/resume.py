"""What a campaign's directory proves: which runs are done, which must be measured (again), and nothing in between.

    DIR/plan.toml, campaign.json          the plan as it was last given, and what it measures
    DIR/cells/CELL/run-K/                 one measured repeat
        state.json                        who is measuring it (written before anything is started)
        server.log, metrics-*.txt, client/    what it left
        run.json                          the seal: key, facts, and checksums of all of the above
    DIR/cells/CELL/run-K.attempt-N/       an earlier try, kept as it was, never read again

A run is finished when its seal is there and true, and the seal is the last thing written: data, fsync, temporary seal,
fsync, rename, fsync of the directory.  The directories are the only truth; there is no index or journal that could
disagree with them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any

from headrace.errors import ConfigError, LaunchError
from headrace.lab.campaign.files import checksum, sync_tree, write_json
from headrace.lab.campaign.launchers.process import ProcessIdentity, boot_id, end_container, kill_by_nonce
from headrace.lab.campaign.launchers.start import Leftover
from headrace.lab.campaign.provenance import digest_of
from headrace.lab.files import sync_directory

Json = Any

SCHEMA_VERSION = 2
STATE, SEAL = "state.json", "run.json"


class RunState(Enum):
    ABSENT = "not measured yet"
    DONE = "measured"
    FAILED = "failed"
    ABANDONED = "not finished"
    DAMAGED = "damaged"
    OUTDATED = "measured with other settings, code, libraries, files or environment variables"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a run has no result.

    kind      not_ready, port, oom, crash, frozen, wrong_model, timeout, refused, protocol, client
    rule      the rule that the server named when it refused its settings
    log_tail  the lines of the server's log that prove it
    """

    kind: str
    message: str
    log_tail: str = ""
    rule: str | None = None


@dataclass(frozen=True, slots=True)
class Seal:
    """A finished run as its seal tells it.

    facts    what was true where and when it was measured (provenance.run_facts)
    server   of its server: process, version, seconds of processor time, ...
    failure  None when it was measured; its result is computed from its records (result.finished_run)
    """

    key: str
    cell: str
    repeat: int
    ended: str
    duration_s: float
    facts: Mapping[str, Json]
    server: Mapping[str, Json]
    failure: Failure | None


@dataclass(frozen=True, slots=True)
class Inspection:
    """state, what proves it (seal: for DONE and FAILED only), and a sentence for the user (empty when all is well)."""

    state: RunState
    seal: Seal | None = None
    why: str = ""


def run_directory(campaign: Path, cell: str, repeat: int) -> Path:
    return campaign / "cells" / cell / f"run-{repeat}"


def inspect(directory: Path, key: str) -> Inspection:
    """Judge one run's directory by what is in it; changes nothing.

    Raises ConfigError when another live process is measuring there.
    """
    if not directory.exists():
        return Inspection(RunState.ABSENT)
    if not (directory / SEAL).exists():
        _refuse_live_owner(directory)
        return Inspection(RunState.ABANDONED, why=f"{directory.name} was not finished")
    try:
        seal = _read_seal(directory)
    except ValueError as error:
        return Inspection(RunState.DAMAGED, why=f"{directory.name} is damaged: {error}")
    if seal.key != key:
        return Inspection(RunState.OUTDATED, why=f"{directory.name} was {RunState.OUTDATED.value}")
    return Inspection(RunState.DONE if seal.failure is None else RunState.FAILED, seal)


def strays(campaign: Path, wanted: Collection[Path]) -> dict[str, list[Path]]:
    """Key -> sealed runs in directories that the plan does not name (any more), in the order of their names."""
    found: dict[str, list[Path]] = {}
    for seal in sorted((campaign / "cells").glob(f"*/run-*/{SEAL}")):
        key = read_json(seal).get("key")
        if seal.parent not in wanted and ".attempt-" not in seal.parent.name and isinstance(key, str):
            found.setdefault(key, []).append(seal.parent)
    return found


def adopt(stray: Path, directory: Path) -> None:
    """Give a finished run the place that the plan names now: a new key in a sweep renames the cells."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    stray.rename(directory)
    sync_directory(directory.parent)
    sync_directory(stray.parent)


def begin(directory: Path, *, key: str, nonce: str) -> None:
    """Make a run's directory, and note down who works in it before anything is started."""
    directory.mkdir(parents=True)
    _write_state(directory, {"key": key, "nonce": nonce, "server": None})
    sync_directory(directory.parent)


def note_server(directory: Path, *, key: str, nonce: str, leftover: Leftover) -> None:
    """Note down what must be ended should the lab die."""
    end = {"container_end": list(leftover.container_end)} if leftover.container_end else {}
    _write_state(directory, {"key": key, "nonce": nonce, "server": leftover.process.to_json(), **end})


def set_aside(directory: Path) -> Path:
    """End what an abandoned run left running, and keep its directory under the next free `.attempt-N` name."""
    _kill_leftovers(directory)
    taken = 1
    while (aside := directory.with_name(f"{directory.name}.attempt-{taken}")).exists():
        taken += 1
    directory.rename(aside)
    sync_directory(directory.parent)
    return aside


def seal_run(directory: Path, seal: Seal) -> None:
    """Declare a run finished.  Everything in its directory is on disk, with its checksum, before the seal appears."""
    sync_tree(directory)
    body = {"schema_version": SCHEMA_VERSION, **asdict(seal), "files": _file_table(directory)}
    write_json(directory / SEAL, {**body, "seal_sha256": digest_of([body])})


def read_json(path: Path) -> dict[str, Json]:
    """A JSON object; empty when there is none, as when a kill came before it was written."""
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def now() -> str:
    """Wall time for people (ISO 8601, UTC); durations come from the monotonic clock."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _write_state(directory: Path, facts: Mapping[str, Json]) -> None:
    owner = ProcessIdentity.of(os.getpid()).to_json()
    write_json(directory / STATE, {"schema_version": SCHEMA_VERSION, "since": now(), "owner": owner, **facts})


def _file_table(directory: Path) -> dict[str, dict[str, Json]]:
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != SEAL)
    return {
        str(path.relative_to(directory)): {"bytes": path.stat().st_size, "sha256": checksum(path)} for path in files
    }


def _read_seal(directory: Path) -> Seal:
    """Raises ValueError with what is wrong: the seal itself, or a file that is not what the seal recorded."""
    try:
        data = json.loads((directory / SEAL).read_bytes())
        recorded = data.pop("seal_sha256")
        if data["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"{SEAL} has schema version {data['schema_version']!r}, not {SCHEMA_VERSION}")
        if recorded != digest_of([data]):
            raise ValueError(f"{SEAL} does not match its own checksum")
        files, failure = data["files"], data["failure"]
        seal = Seal(
            key=data["key"],
            cell=data["cell"],
            repeat=data["repeat"],
            ended=data["ended"],
            duration_s=data["duration_s"],
            facts=data["facts"],
            server=data["server"],
            failure=None if failure is None else Failure(**failure),
        )
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{SEAL} cannot be read ({type(error).__name__})") from None
    if (now_there := _file_table(directory)) != files:
        names = sorted(name for name in {*files, *now_there} if files.get(name) != now_there.get(name))
        raise ValueError(f"{names[0]} is not what {SEAL} recorded")
    return seal


def _refuse_live_owner(directory: Path) -> None:
    """The campaign's lock keeps two labs of one machine apart; this is for file systems where locks do not hold."""
    try:
        owner = ProcessIdentity.from_json(read_json(directory / STATE)["owner"])
    except (KeyError, TypeError, ValueError):
        return
    if owner.pid != os.getpid() and owner.alive():
        raise ConfigError(f"{directory} is being measured by process {owner.pid}; wait for it, or give another --out")


def _container_end(state: Mapping[str, Json], nonce: str) -> list[str]:
    """The command that was noted down, if it can only end the container of this very run."""
    noted = state.get("container_end")
    if not isinstance(noted, list) or not all(isinstance(word, str) for word in noted):
        return []
    return noted if noted[-3:] == ["rm", "--force", nonce] else []


def _kill_leftovers(directory: Path) -> None:
    """Servers die with their lab; this is for workers that a killed server could not take with it.

    The nonce in a process's environment proves where it comes from; after a reboot nothing can be left.
    """
    state = read_json(directory / STATE)
    nonce, owner = state.get("nonce"), state.get("owner")
    if not isinstance(nonce, str) or not nonce or not isinstance(owner, dict) or owner.get("boot_id") != boot_id():
        return
    try:
        end_container(_container_end(state, nonce))
        kill_by_nonce(nonce)
    except LaunchError as error:
        raise LaunchError(f"{directory}: {error}", kind=error.kind) from None
