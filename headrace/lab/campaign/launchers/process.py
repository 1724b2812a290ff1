"""A server as a process of ours: its own group, killed when the lab dies, signalled only after a check of identity.

Process ids are reused.  So a process is known by its id *and* its start time *and* the machine's boot id, and what it
spawned is known by a nonce in the environment, by its group and by its parents: a process that gives itself a title
(vLLM's workers do) overwrites its environment.  Linux only (`/proc`, `prctl`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from headrace.errors import LaunchError
from headrace.lab.campaign.launchers.environment import NONCE_VARIABLE, server_environment
from headrace.lab.procfs import PROC, descendants, pids, stat_fields

_CONTAINER_S = 60.0
_GUARD = Path(__file__).with_name("guard.py")
_POLL_S = 0.02
_ENDED = "ZX"  # states of a process that waits for its parent, or is no more


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """What tells a process from every other one that had or will have its id.

    start_ticks  field 22 of /proc/PID/stat: clock ticks since boot; unchanged by exec
    """

    pid: int
    start_ticks: int
    boot_id: str
    host: str

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity:
        """Raises ProcessLookupError when there is no such process."""
        stat = _stat(pid)
        if stat is None:
            raise ProcessLookupError(pid)
        return cls(pid, stat[1], boot_id(), os.uname().nodename)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ProcessIdentity:
        return cls(int(data["pid"]), int(data["start_ticks"]), str(data["boot_id"]), str(data["host"]))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def alive(self) -> bool:
        """Whether this very process still exists here.  False for one of another machine or before a reboot."""
        if self.boot_id != boot_id():
            return False
        stat = _stat(self.pid)
        return stat is not None and stat[1] == self.start_ticks and stat[0] not in _ENDED


def boot_id() -> str:
    """Changes with every boot: process ids and start times mean nothing across it."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class ServerProcess:
    """A running child in its own process group, with its output in a file."""

    def __init__(
        self,
        popen: subprocess.Popen[bytes],
        identity: ProcessIdentity,
        nonce: str,
        log: Path,
        container_end: Sequence[str] = (),
    ) -> None:
        self._popen = popen
        self._container_end = container_end
        self.identity = identity
        self.nonce = nonce
        self.log = log

    @classmethod
    def start(
        cls,
        command: Sequence[str],
        *,
        log: Path,
        nonce: str,
        extra_env: Mapping[str, str] | None = None,
        container_end: Sequence[str] = (),
    ) -> ServerProcess:
        """Start `command` with stdout and stderr appended to `log`, in `server_environment` and `extra_env`.

        `container_end` is a command that ends what no signal to the process reaches: a container.
        Call it from a thread that lives as long as the server may: the kernel sends the death signal when the
        *thread* that forked ends.  Raises LaunchError when no process can be made.
        """
        guarded = [sys.executable, "-I", "-S", str(_GUARD), str(os.getpid()), *command]
        try:
            with log.open("ab") as sink:
                popen = subprocess.Popen(
                    guarded,
                    stdin=subprocess.DEVNULL,
                    stdout=sink,
                    stderr=subprocess.STDOUT,
                    env={**server_environment(nonce), **(extra_env or {})},
                    process_group=0,  # Ctrl-C in the terminal is the lab's; and the group can be killed as a whole
                )
        except OSError as error:
            raise LaunchError(f"no process could be started: {error.strerror}", kind="crash") from None
        return cls(popen, ProcessIdentity.of(popen.pid), nonce, log, container_end)

    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that ended it.

        An ended one stays unreaped until `kill`: so long nobody else can get its id, nor the id of its group.
        """
        if self._popen.returncode is not None:
            return self._popen.returncode
        ended = os.waitid(os.P_PID, self.identity.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def stop(self, grace_s: float) -> int:
        """End it: SIGTERM (the server drains), then SIGKILL to the whole group.  Returns the exit code.

        A second Ctrl-C while it drains kills at once and is then raised again.
        """
        try:
            if self.exit_code() is None:
                os.kill(self.identity.pid, signal.SIGTERM)
                deadline = time.monotonic() + grace_s
                while self.exit_code() is None and time.monotonic() < deadline:
                    time.sleep(_POLL_S)
        finally:
            self.kill()
        return self._popen.returncode

    def kill(self) -> None:
        """SIGKILL to it and to all that it spawned; returns when none of them is left."""
        try:
            kill_by_nonce(self.nonce)  # first, while its children still have it for a parent
        finally:
            if self._popen.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.identity.pid, signal.SIGKILL)
                self._popen.wait()
            end_container(self._container_end)

    def log_tail(self, lines: int = 20) -> str:
        return log_tail(self.log, lines)

    def log_text(self) -> str:
        """The end of its log that is long enough for a traceback of several processes."""
        return log_tail(self.log, lines=1000, most_bytes=256 * 1024)


def end_container(command: Sequence[str]) -> None:
    """Run the command that ends a container; nothing to do without one.  Raises LaunchError when it fails."""
    if not command:
        return
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_CONTAINER_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LaunchError(f"{' '.join(command)} did not end the container: {error}", kind="frozen") from None
    # A container that has ended by itself is gone already (--rm).
    if done.returncode != 0 and "no such container" not in done.stderr.lower():
        raise LaunchError(f"{' '.join(command)} failed: {done.stderr.strip()[-300:]}", kind="frozen")


def log_tail(log: Path, lines: int = 20, most_bytes: int = 16_384) -> str:
    """The last lines of a log, read from its end (a log may be large); empty when there is none."""
    try:
        with log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - most_bytes))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def kill_by_nonce(nonce: str, *, patience_s: float = 5.0) -> list[int]:
    """Kill every process of this user that belongs to `nonce` (`processes_with`); returns their ids.

    For what a server left behind (workers), and for what a killed lab left behind.  Waits until they are gone.
    Raises LaunchError when some stay.
    """
    killed: set[int] = set()
    deadline = time.monotonic() + patience_s
    while left := processes_with(nonce):
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed.update(left)
        if time.monotonic() > deadline:
            raise LaunchError(f"processes of an earlier server do not end: {sorted(left)}", kind="frozen")
        time.sleep(_POLL_S)
    return sorted(killed)


def processes_with(nonce: str) -> list[int]:
    """Ids of this user's live processes that carry `nonce` in their environment, are in the group of one that does,
    or descend from one."""
    needle = f"{NONCE_VARIABLE}={nonce}".encode()
    marked: set[int] = set()
    parents: dict[int, int] = {}
    group_of: dict[int, int] = {}
    for pid in pids():
        fields = None if pid == os.getpid() else stat_fields(pid)
        if fields is None or fields[0] in _ENDED:
            continue
        with contextlib.suppress(OSError):  # gone meanwhile, or another user's
            is_marked = needle in (PROC / str(pid) / "environ").read_bytes().split(b"\0")
            parents[pid], group_of[pid] = int(fields[1]), int(fields[2])
            if is_marked:
                marked.add(pid)
    # A server is started as the leader of a group; nobody else's is in it.  The lab's own group is never meant.
    groups = {group_of[pid] for pid in marked} - {os.getpgrp()}
    return sorted(descendants(marked | {pid for pid, group in group_of.items() if group in groups}, parents))


def _stat(pid: int) -> tuple[str, int] | None:
    """(state letter, start time in ticks) from /proc; None when there is no such process."""
    fields = stat_fields(pid)
    return None if fields is None else (fields[0], int(fields[19]))
