"""Where a run was measured: what a reader needs to know before believing or repeating it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from headrace.version import VERSION

_PACKAGES = ("numpy", "scipy", "tokenizers", "uvloop", "torch", "transformers", "vllm")


def describe_environment() -> dict[str, Any]:
    """CPU, memory, system, Python, packages and revision, JSON-ready.  What cannot be read is None."""
    return {
        "headrace": VERSION,
        "git_revision": _git_revision(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "cpu_model": _proc_field(Path("/proc/cpuinfo"), "model name") or platform.processor() or None,
        "cpus": os.cpu_count(),
        "cpus_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": _memory_bytes(),
        "governor": _read(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "packages": _package_versions(),
        "argv0": Path(sys.argv[0]).name if sys.argv else None,
    }


def _package_versions() -> dict[str, str]:
    versions: dict[str, str] = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _git_revision() -> str | None:
    """The checkout's commit, with "-dirty" when tracked files differ; None for an installed package."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except OSError:
        return None


def _proc_field(path: Path, field: str) -> str | None:
    for line in (_read(path) or "").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return None


def _memory_bytes() -> int | None:
    total = _proc_field(Path("/proc/meminfo"), "MemTotal")
    return int(total.split()[0]) * 1024 if total else None
