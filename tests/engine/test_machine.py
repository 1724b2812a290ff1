"""Limits are read from a file system that the test makes: what a container may use, not what its host has."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.engine import machine

GIB = 1 << 30


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path, "proc/meminfo", f"MemTotal: {64 << 20} kB\nMemAvailable: {32 << 20} kB\n")
    return tmp_path


def write(root: Path, path: str, text: object) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(f"{text}\n")


def test_without_a_container_it_is_what_the_machine_has_available(root: Path) -> None:
    assert machine.free_memory_bytes(root) == 32 * GIB


def test_a_cgroup_v2_limit_counts_and_its_page_cache_is_free(root: Path) -> None:
    write(root, "proc/self/cgroup", "0::/box")
    write(root, "sys/fs/cgroup/box/memory.max", 4 * GIB)
    write(root, "sys/fs/cgroup/box/memory.current", 3 * GIB)
    write(root, "sys/fs/cgroup/box/memory.stat", f"anon {GIB}\ninactive_file {2 * GIB}")
    assert machine.free_memory_bytes(root) == 3 * GIB


def test_the_tightest_ancestor_binds(root: Path) -> None:
    write(root, "proc/self/cgroup", "0::/slice/box")
    write(root, "sys/fs/cgroup/slice/memory.max", 2 * GIB)
    write(root, "sys/fs/cgroup/slice/memory.current", GIB)
    write(root, "sys/fs/cgroup/slice/box/memory.max", "max")
    write(root, "sys/fs/cgroup/slice/box/memory.current", GIB)
    assert machine.free_memory_bytes(root) == GIB


def test_a_cgroup_v1_limit_counts_and_no_limit_is_none(root: Path) -> None:
    write(root, "proc/self/cgroup", "4:memory:/box\n1:cpu,cpuacct:/box")
    write(root, "sys/fs/cgroup/memory/box/memory.limit_in_bytes", 8 * GIB)
    write(root, "sys/fs/cgroup/memory/box/memory.usage_in_bytes", 2 * GIB)
    write(root, "sys/fs/cgroup/memory/memory.limit_in_bytes", 9223372036854771712)
    write(root, "sys/fs/cgroup/memory/memory.usage_in_bytes", 50 * GIB)
    assert machine.free_memory_bytes(root) == 6 * GIB


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("1600000 100000", 8)]
)
def test_a_quota_limits_threads_to_whole_cores(
    root: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cores: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    write(root, "proc/self/cgroup", "0::/box")
    write(root, "sys/fs/cgroup/box/cpu.max", quota)
    assert machine.usable_cores(root)[0] == cores


def test_a_cgroup_v1_quota_limits_threads(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    write(root, "proc/self/cgroup", "1:cpu:/box")
    write(root, "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us", 300000)
    write(root, "sys/fs/cgroup/cpu/box/cpu.cfs_period_us", 100000)
    assert machine.usable_cores(root) == (3, "container quota of 3 cores")


@pytest.mark.parametrize(
    ("text", "native"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16\n", True),
        ("flags\t\t: fpu avx2 avx512f\n", False),
        ("Features\t: fp asimd bf16\n", True),
        ("processor : 0\n", True),  # says nothing
    ],
)
def test_native_bfloat16_is_read_from_the_processors_flags(tmp_path: Path, text: str, native: bool) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cpuinfo").write_text(text)
    assert machine.has_native_bf16(tmp_path) is native
