"""What this process may really use: cores and memory, container (cgroup) limits counted.

A container sees its host's /proc/meminfo and core count; sizing a KV cache by those ends in the OOM killer, and
more threads than the quota allows end in throttling.  Standard library only, so that `--help` and tests stay fast.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

_V1_UNLIMITED = 1 << 60  # cgroup v1 writes "no limit" as a page-rounded 2**63


def free_memory_bytes(root: Path = Path("/")) -> int:
    """Bytes that can be taken without swapping or being killed: the least of the machine's and every cgroup's.

    Page cache that the kernel would give back counts as free.  `root` is the file system to read /proc and /sys in.
    """
    free = _meminfo(root).get("MemAvailable", 1 << 30)
    for directory in _cgroup_directories(root, "memory"):
        limit = _number(directory / "memory.max") or _number(directory / "memory.limit_in_bytes")
        used = _number(directory / "memory.current")
        if used is None:
            used = _number(directory / "memory.usage_in_bytes")
        if limit is None or used is None or limit >= _V1_UNLIMITED:
            continue
        stat = _table(directory / "memory.stat")
        reclaimable = stat.get("total_inactive_file", stat.get("inactive_file", 0))
        free = min(free, limit - max(0, used - reclaimable))
    return max(0, free)


def usable_cores(root: Path = Path("/")) -> tuple[int, str]:
    """(cores that this process can keep busy, where the number is from); at least 1."""
    cores, why = _affinity(), "cores in this process's affinity mask"
    for directory in _cgroup_directories(root, "cpu"):
        quota = _cpu_quota(directory)
        # A quota of 2.5 cores is best used by 2 busy threads: a third would be throttled half of the time, and the
        # others would wait for it at every barrier.
        if quota is not None and max(1, math.floor(quota)) < cores:
            cores, why = max(1, math.floor(quota)), f"container quota of {quota:g} cores"
    return cores, why


def has_native_bf16(root: Path = Path("/")) -> bool:
    """Whether the processor multiplies bfloat16 itself (AVX-512 BF16, AMX, or Arm's bf16); True where it does not say.

    Without it torch converts to float32 and back around every product, which is slower than float32 throughout.
    """
    flags = _processor_flags(root)
    return not flags or bool(flags & {"avx512_bf16", "amx_bf16", "bf16", "svebf16"})


def has_avx512(root: Path = Path("/")) -> bool:
    """Whether the processor says that it has AVX-512: torch's int4 product is vectorised for nothing less."""
    return "avx512f" in _processor_flags(root)


def _processor_flags(root: Path) -> set[str]:
    try:
        text = (root / "proc/cpuinfo").read_text()
    except OSError:
        return set()
    return {word for line in text.splitlines() if line.startswith(("flags", "Features")) for word in line.split()}


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def _cpu_quota(directory: Path) -> float | None:
    try:
        quota, period = (directory / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    quota_us, period_us = _number(directory / "cpu.cfs_quota_us"), _number(directory / "cpu.cfs_period_us")
    if quota_us is None or quota_us <= 0 or not period_us:
        return None
    return quota_us / period_us


def _cgroup_directories(root: Path, controller: str) -> Iterator[Path]:
    """This process's cgroup and its ancestors, for both hierarchies: a limit on any of them binds."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup"
        if controllers:
            top = top / controllers if (top / controllers).is_dir() else top / controller
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts), -1, -1):
            directory = top.joinpath(*parts[:depth])
            if directory.is_dir():
                yield directory


def _meminfo(root: Path) -> dict[str, int]:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return {}
    return {name: int(value.split()[0]) * 1024 for name, _, value in (line.partition(":") for line in lines) if value}


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None  # absent, or "max"


def _table(path: Path) -> dict[str, int]:
    try:
        rows = [line.split() for line in path.read_text().splitlines()]
        return {row[0]: int(row[1]) for row in rows if len(row) == 2}
    except (OSError, ValueError):
        return {}
