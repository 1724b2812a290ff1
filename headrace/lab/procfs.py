"""What Linux says under /proc of processes, their sockets and the processors' time."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
_LISTENS = "0A"


class CpuTime(NamedTuple):
    """Seconds of some processors since boot; `stolen`: what a hypervisor gave to others; `total` has idleness too."""

    busy: float
    stolen: float
    total: float


def pids() -> Iterator[int]:
    """Of all processes, in no order."""
    return (int(entry.name) for entry in PROC.iterdir() if entry.name.isdecimal())


def stat_fields(pid: int) -> list[str] | None:
    """/proc/PID/stat from the state letter (field 3) on; None when there is no such process."""
    try:
        stat = (PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    # The command name is in parentheses and may hold anything, even ") ": count from the last one.
    return stat[stat.rindex(")") + 2 :].split()


def descendants(roots: Collection[int], parents: Mapping[int, int]) -> set[int]:
    """The roots and all that descend from them; `parents` is process -> its parent."""
    known = set(roots)
    while more := {pid for pid, parent in parents.items() if parent in known} - known:
        known |= more
    return known


def cpu_s(pid: int) -> float:
    """Processor time of a process, its threads and its ended children; 0 when it has gone."""
    fields = stat_fields(pid)
    return 0.0 if fields is None else sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def machine_time() -> CpuTime:
    """Of the processors that this process may use.  OSError where there is no /proc/stat."""
    tick = 1 / os.sysconf("SC_CLK_TCK")
    ticks = cpu_ticks((PROC / "stat").read_text(), os.sched_getaffinity(0))
    user, nice, system, idle, iowait, irq, softirq, steal = (tick * count for count in ticks)
    busy = user + nice + system + irq + softirq
    return CpuTime(busy, steal, busy + idle + iowait + steal)


def cpu_ticks(stat: str, cpus: Collection[int]) -> tuple[int, ...]:
    """user nice system idle iowait irq softirq steal of `cpus`, from the text of /proc/stat.

    Not its first line, which is the whole host: a lab bound to two of 64 processors would count everybody's work there,
    and see its own as next to nothing.  The guest columns after these are part of user and nice.
    """
    names = {f"cpu{number}" for number in cpus}
    rows = [line.split() for line in stat.splitlines() if line.startswith("cpu")]
    return tuple(sum(int(row[column]) for row in rows if row[0] in names) for column in range(1, 9))


def listeners(port: int, among: Collection[int] | None = None) -> set[int]:
    """Processes (of `among`, else all) that hold a TCP socket that listens on `port`."""
    inodes = _listening_inodes(port)
    return {pid for pid in (pids() if among is None else among) if inodes and _holds(pid, inodes)}


def _holds(pid: int, inodes: Collection[str]) -> bool:
    with contextlib.suppress(OSError):  # gone meanwhile, or another user's
        for handle in (PROC / str(pid) / "fd").iterdir():
            with contextlib.suppress(OSError):
                if handle.readlink().name in inodes:
                    return True
    return False


def _listening_inodes(port: int) -> set[str]:
    found = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in (PROC / "net" / table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENS and int(fields[1].rpartition(":")[2], 16) == port:
                    found.add(f"socket:[{fields[9]}]")
    return found
