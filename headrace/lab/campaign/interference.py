"""Who else used the processor while a run was measured: a busy neighbour looks like a slow setting."""

from __future__ import annotations

import os
from dataclasses import dataclass

from headrace.lab.campaign.launchers.process import processes_with
from headrace.lab.procfs import cpu_s, machine_time

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
        busy, stolen, total = machine_time()
        times = os.times()
        return cls(
            busy=busy,
            stolen=stolen,
            total=total,
            server=sum(map(cpu_s, processes_with(nonce))),
            lab=times.user + times.system,
        )

    def since(self, before: CpuUse) -> CpuUse:
        return CpuUse(*(getattr(self, name) - getattr(before, name) for name in self.__slots__))

    @property
    def foreign_share(self) -> float:
        """Share of these processors, 0 to 1, that went to neither server nor lab."""
        return max(0.0, self.busy + self.stolen - self.server - self.lab) / self.total if self.total > 0 else 0.0


def interference_warning(foreign_share: float) -> str | None:
    """A sentence when others took enough to change the result."""
    if foreign_share <= WARN_SHARE:
        return None
    return (
        f"other processes used {foreign_share:.0%} of the machine's processor time during this run (more than "
        f"{WARN_SHARE:.0%}): it is slower than the settings alone would make it"
    )
