"""GPUs while a run is measured, by NVML: clocks, power, memory, load, and what held the clocks back.

Optional: without the package `nvidia-ml-py`, a driver or a GPU there is nothing to read, and nothing is said.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any

Json = Any

# Reasons that make a run slower than its settings: NVML's bits, in words.  The others (idle, a clock that a person
# has set) say nothing of the kind.
_SLOWED = {
    0x0000000000000004: "its power cap",
    0x0000000000000008: "a hardware slowdown",
    0x0000000000000020: "its temperature",
    0x0000000000000040: "its temperature (hardware)",
    0x0000000000000080: "an external power brake",
}
# Share of the readings in which the clocks were held back, from which a reader must know.
_WARN_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Reading:
    """One GPU at one instant of the lab's monotonic clock."""

    t_ns: int
    gpu: int
    power_w: float
    sm_mhz: float
    memory_bytes: float
    load: float
    temperature_c: float
    held_back: int

    def to_line(self) -> str:
        values = {name: getattr(self, name) for name in self.__slots__}
        return json.dumps(values, separators=(",", ":")) + "\n"


class Gpus:
    """The machine's GPUs.  Use `open_gpus`."""

    def __init__(self, nvml: ModuleType, handles: Sequence[Any]) -> None:
        self._nvml = nvml
        self._handles = handles

    def names(self) -> list[str]:
        texts = (self._nvml.nvmlDeviceGetName(handle) for handle in self._handles)
        return [text.decode() if isinstance(text, bytes) else str(text) for text in texts]

    def used_bytes(self) -> list[int]:
        """Memory in use on each, by anybody."""
        return [int(self._nvml.nvmlDeviceGetMemoryInfo(handle).used) for handle in self._handles]

    def read(self, t_ns: int) -> list[Reading]:
        """One reading a GPU; a value that a GPU does not report is 0."""
        return [self._read(t_ns, number, handle) for number, handle in enumerate(self._handles)]

    def _read(self, t_ns: int, number: int, handle: Any) -> Reading:
        nvml = self._nvml

        def asked(name: str, *arguments: Any) -> Any:
            try:
                return getattr(nvml, name)(handle, *arguments)
            except nvml.NVMLError:
                return None

        memory, load = asked("nvmlDeviceGetMemoryInfo"), asked("nvmlDeviceGetUtilizationRates")
        return Reading(
            t_ns=t_ns,
            gpu=number,
            power_w=(asked("nvmlDeviceGetPowerUsage") or 0) / 1000,
            sm_mhz=float(asked("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM) or 0),
            memory_bytes=float(memory.used if memory is not None else 0),
            load=(load.gpu if load is not None else 0) / 100,
            temperature_c=float(asked("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU) or 0),
            held_back=int(asked("nvmlDeviceGetCurrentClocksThrottleReasons") or 0),
        )


def open_gpus() -> Gpus | None:
    """The machine's GPUs, None without one (or without what reads it)."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    except nvml.NVMLError:
        return None
    return Gpus(nvml, handles) if handles else None


def read_readings(path: Path) -> list[Reading]:
    """Those that a run left; a torn last line is not one."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            found.append(Reading(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return found


def gpu_metrics(readings: Sequence[Reading], window_ns: tuple[int, int]) -> tuple[dict[str, float], list[str]]:
    """A run's figures (absent without a reading inside `window_ns`), and sentences that a reader must know.

    Power, energy and memory are of all GPUs together; clock, load and temperature of the mean and the hottest one.
    """
    inside = [one for one in readings if window_ns[0] <= one.t_ns <= window_ns[1]]
    if not inside:
        return {}, []
    by_time: dict[int, list[Reading]] = {}
    for one in inside:
        by_time.setdefault(one.t_ns, []).append(one)
    power = fmean(sum(one.power_w for one in same) for same in by_time.values())
    metrics = {
        "gpu_mean_power_w": power,
        "gpu_energy_j": power * (window_ns[1] - window_ns[0]) / 1e9,
        "gpu_max_memory_bytes": max(sum(one.memory_bytes for one in same) for same in by_time.values()),
        "gpu_mean_sm_mhz": fmean(one.sm_mhz for one in inside),
        "gpu_mean_load": fmean(one.load for one in inside),
        "gpu_max_temperature_c": max(one.temperature_c for one in inside),
    }
    warnings = []
    for bit, words in _SLOWED.items():
        share = fmean(bool(one.held_back & bit) for one in inside)
        if share > _WARN_SHARE:
            warnings.append(f"the GPU's clocks were held back by {words} in {share:.0%} of the readings")
    return metrics, warnings
