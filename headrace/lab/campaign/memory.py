"""Is the last server's memory free again?  The next one would start with less, and a cache would be smaller."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from headrace.errors import LaunchError
from headrace.lab.campaign.telemetry import Gpus

# A driver keeps a little to itself; a model or a cache is far more.
_SLACK_BYTES = 256 << 20
_PATIENCE_S = 60.0
_POLL_S = 0.5
_SHARED = "/dev/shm"


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """What was taken before a server started: of each GPU, and of the machine's shared memory, in bytes.

    A process's own memory needs no look: it is free when the process has gone, which `ServerProcess.kill` waits for.
    A GPU's is freed by its driver a little later; shared memory stays until somebody removes it.
    """

    gpus: tuple[int, ...]
    shared: int

    @classmethod
    def now(cls, gpus: Gpus | None) -> MemoryUse:
        return cls(tuple(gpus.used_bytes()) if gpus is not None else (), _shared_bytes())


def wait_for_release(before: MemoryUse, gpus: Gpus | None, *, patience_s: float = _PATIENCE_S) -> int:
    """Wait until the GPUs have what they had; returns the bytes of shared memory that were left behind.

    Raises LaunchError (kind "memory") when a GPU's memory stays taken: the next run would be of another machine.
    """
    deadline = time.monotonic() + patience_s
    while True:
        now = MemoryUse.now(gpus)
        held = [used - free for used, free in zip(now.gpus, before.gpus, strict=True) if used > free + _SLACK_BYTES]
        if not held:
            return max(0, now.shared - before.shared)
        if time.monotonic() > deadline:
            raise LaunchError(
                f"{sum(held) / 2**20:.0f} MiB of GPU memory are still taken {patience_s:g} s after the server ended: "
                "another process has them, or a driver that does not give them back",
                kind="memory",
            )
        time.sleep(_POLL_S)


def _shared_bytes() -> int:
    try:
        status = os.statvfs(_SHARED)
    except OSError:
        return 0
    return (status.f_blocks - status.f_bfree) * status.f_frsize
