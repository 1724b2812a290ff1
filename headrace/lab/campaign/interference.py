"""Who else used the processor while a run was measured: a busy neighbour looks like a slow setting."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from headrace.lab.campaign.launchers.process import processes_with

# Above this share of the machine a reader must know (measurement rule: foreign CPU is recorded, more than 10 % warns).
WARN_SHARE = 0.10


@dataclass(frozen=True, slots=True)
class CpuUse:
    """Seconds of processor time since some beginning, over the processors that this process may use.

    busy, stolen, total   of these processors; stolen is what a hypervisor gave to others
    server, lab           of the server with all its processes, and of this process
    """

    busy: float
    stolen: float
    total: float
    server: float
    lab: float

    @classmethod
    def now(cls, nonce: str) -> CpuUse:
        """Read it all; `nonce` marks the server's processes.  Linux only."""
        tick = 1 / os.sysconf("SC_CLK_TCK")
        ticks = cpu_ticks(Path("/proc/stat").read_text(), os.sched_getaffinity(0))
        user, nice, system, idle, iowait, irq, softirq, steal = (tick * count for count in ticks)
        busy = user + nice + system + irq + softirq
        times = os.times()
        return cls(
            busy=busy,
            stolen=steal,
            total=busy + idle + iowait + steal,
            server=sum(_cpu_s(pid, tick) for pid in processes_with(nonce)),
            lab=times.user + times.system,
        )

    def since(self, before: CpuUse) -> CpuUse:
        return CpuUse(*(getattr(self, name) - getattr(before, name) for name in self.__slots__))

    @property
    def foreign_share(self) -> float:
        """Share of these processors, 0 to 1, that went to neither server nor lab."""
        return max(0.0, self.busy + self.stolen - self.server - self.lab) / self.total if self.total > 0 else 0.0


def cpu_ticks(stat: str, cpus: Collection[int]) -> tuple[int, ...]:
    """user nice system idle iowait irq softirq steal of `cpus`, from the text of /proc/stat.

    Not its first line, which is the whole host: a lab bound to two of 64 processors would count everybody's work there,
    and see its own as next to nothing.  The guest columns after these are part of user and nice.
    """
    names = {f"cpu{number}" for number in cpus}
    rows = [line.split() for line in stat.splitlines() if line.startswith("cpu")]
    return tuple(sum(int(row[column]) for row in rows if row[0] in names) for column in range(1, 9))


def interference_warning(foreign_share: float) -> str | None:
    """A sentence when others took enough to change the result."""
    if foreign_share <= WARN_SHARE:
        return None
    return (
        f"other processes used {foreign_share:.0%} of the machine's processor time during this run (more than "
        f"{WARN_SHARE:.0%}): it is slower than the settings alone would make it"
    )


def _cpu_s(pid: int, tick: float) -> float:
    """Processor time of a process, its threads and its ended children; 0 when it has gone."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return tick * sum(map(int, fields[11:15]))
    return 0.0
