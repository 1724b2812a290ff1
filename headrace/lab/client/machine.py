"""Whose processor time a run took: the client's, the server's where it is on this machine, everybody else's."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from headrace.lab.campaign.interference import cpu_ticks

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class MachineTime:
    """Seconds of the processors that this process may use: all there were, and what others than we used of them.

    others  everybody but this process tree and the server; includes what a hypervisor took; None where the server is
            on another machine and could not be told from others, or nothing can be read
    """

    total: float
    others: float

    @classmethod
    def now(cls, url: str) -> MachineTime | None:
        """Read /proc; None where there is none."""
        try:
            tick = 1 / os.sysconf("SC_CLK_TCK")
            ticks = cpu_ticks(Path("/proc/stat").read_text(), os.sched_getaffinity(0))
            parents = _parents()
        except (OSError, AttributeError, ValueError):
            return None
        user, nice, system, _, _, irq, softirq, steal = (tick * count for count in ticks)
        known = _family({os.getpid(), *_listeners(url)}, parents)
        mine = sum(_cpu_s(pid, tick) for pid in known)
        return cls(total=tick * sum(ticks), others=user + nice + system + irq + softirq + steal - mine)

    def others_share_since(self, before: MachineTime) -> float | None:
        """Share of all processors, 0 to 1."""
        total = self.total - before.total
        return min(1.0, max(0.0, self.others - before.others) / total) if total > 0 else None


def _parents() -> dict[int, int]:
    found: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError, ValueError, IndexError):
                found[int(name)] = int(
                    Path(f"/proc/{name}/stat").read_text(errors="replace").rpartition(")")[2].split()[1]
                )
    return found


def _family(roots: set[int], parents: dict[int, int]) -> set[int]:
    """The processes and all their descendants."""
    known = set(roots)
    grown = True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in known} - known
        known |= more
        grown = bool(more)
    return known


def _listeners(url: str) -> set[int]:
    """Processes of this machine that listen on the address's port; none for another machine."""
    parts = urlsplit(url)
    if parts.hostname not in _LOOPBACK:
        return set()
    port = f"{parts.port or 80:04X}"
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and fields[1].rpartition(":")[2] == port:
                    inodes.add(f"socket:[{fields[9]}]")
    found = set()
    for name in os.listdir("/proc"):
        if name.isdecimal() and inodes:
            with contextlib.suppress(OSError):
                if any(os.readlink(f"/proc/{name}/fd/{fd}") in inodes for fd in os.listdir(f"/proc/{name}/fd")):
                    found.add(int(name))
    return found


def _cpu_s(pid: int, tick: float) -> float:
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return tick * sum(map(int, fields[11:15]))
    return 0.0
