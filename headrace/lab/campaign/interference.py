"""Who else used the processor while a run was measured: a busy neighbour looks like a slow setting."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from headrace.lab.campaign.launchers.process import processes_with

# Above this share of the machine a reader must know (measurement rule: foreign CPU is recorded, more than 10 % warns).
WARN_SHARE = 0.10


@dataclass(frozen=True, slots=True)
class CpuUse:
    """Seconds of processor time since some beginning, over all processors.

    busy, stolen, total   of the machine; stolen is what a hypervisor gave to others
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
        # user nice system idle iowait irq softirq steal; the guest columns after them are part of user and nice.
        ticks = [int(text) for text in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        tick = 1 / os.sysconf("SC_CLK_TCK")
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
        """Share of the machine, 0 to 1, that went to neither server nor lab."""
        return max(0.0, self.busy + self.stolen - self.server - self.lab) / self.total if self.total > 0 else 0.0


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
