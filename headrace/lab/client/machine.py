"""Whose processor time a run took: the client's, the server's where it is on this machine, everybody else's."""

from __future__ import annotations

import os
from dataclasses import dataclass
from urllib.parse import urlsplit

from headrace.lab.procfs import cpu_s, descendants, listeners, machine_time, pids, stat_fields

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
            busy, stolen, total = machine_time()
        except (OSError, AttributeError, ValueError):
            return None
        known = descendants({os.getpid(), *_servers(url)}, _parents())
        return cls(total=total, others=busy + stolen - sum(map(cpu_s, known)))

    def others_share_since(self, before: MachineTime) -> float | None:
        """Share of all processors, 0 to 1."""
        total = self.total - before.total
        return min(1.0, max(0.0, self.others - before.others) / total) if total > 0 else None


def _parents() -> dict[int, int]:
    return {pid: int(fields[1]) for pid in pids() if (fields := stat_fields(pid)) is not None}


def _servers(url: str) -> set[int]:
    """Processes of this machine that listen on the address's port; none for another machine."""
    parts = urlsplit(url)
    return listeners(parts.port or 80) if parts.hostname in _LOOPBACK else set()
