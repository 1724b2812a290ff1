"""GPUs are read where there are some, by a library that need not be there."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from headrace.lab.campaign import telemetry
from headrace.lab.campaign.telemetry import Reading, gpu_metrics, open_gpus, read_readings

POWER_CAP = 0x4


def fake_nvml(gpus: int = 2, *, broken: bool = False) -> ModuleType:
    nvml = ModuleType("pynvml")

    class NVMLError(Exception):
        pass

    def init() -> None:
        if broken:
            raise NVMLError("Driver Not Loaded")

    def no_power(handle: int) -> int:
        if handle == 1:
            raise NVMLError("Not Supported")
        return 300_000

    vars(nvml).update(
        NVMLError=NVMLError,
        NVML_CLOCK_SM=1,
        NVML_TEMPERATURE_GPU=0,
        nvmlInit=init,
        nvmlDeviceGetCount=lambda: gpus,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda handle: b"NVIDIA H100",
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=(handle + 1) << 30),
        nvmlDeviceGetPowerUsage=no_power,
        nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=50),
        nvmlDeviceGetClockInfo=lambda handle, kind: 1500,
        nvmlDeviceGetTemperature=lambda handle, kind: 60 + handle,
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda handle: POWER_CAP if handle == 0 else 0,
    )
    return nvml


def test_what_nvml_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml())
    gpus = open_gpus()
    assert gpus is not None and gpus.names() == ["NVIDIA H100"] * 2 and gpus.used_bytes() == [1 << 30, 2 << 30]
    first, second = gpus.read(7)
    assert (first.power_w, second.power_w) == (300.0, 0.0)  # one that does not report it
    assert (first.t_ns, first.sm_mhz, first.load, second.temperature_c) == (7, 1500.0, 0.5, 61.0)


@pytest.mark.parametrize("nvml", [None, fake_nvml(0), fake_nvml(broken=True)], ids=["no library", "none", "no driver"])
def test_a_machine_without_gpus_says_nothing(monkeypatch: pytest.MonkeyPatch, nvml: ModuleType | None) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert open_gpus() is None


def test_readings_become_figures_of_the_run(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml())
    gpus = open_gpus()
    assert gpus is not None
    file = tmp_path / "gpu.jsonl"
    file.write_text("".join(one.to_line() for t in (0, 10**9, 2 * 10**9, 9 * 10**9) for one in gpus.read(t)) + '{"t_')
    readings = read_readings(file)
    assert len(readings) == 8 and isinstance(readings[0], Reading)
    metrics, warnings = gpu_metrics(readings, (10**9, 3 * 10**9))
    assert metrics["gpu_mean_power_w"] == 300 and metrics["gpu_energy_j"] == 600
    assert metrics["gpu_max_memory_bytes"] == 3 << 30 and metrics["gpu_max_temperature_c"] == 61
    assert warnings == ["the GPU's clocks were held back by its power cap in 50% of the readings"]
    assert gpu_metrics(readings, (4 * 10**9, 5 * 10**9)) == ({}, [])


def test_the_library_is_not_needed_to_import_the_lab() -> None:
    assert "pynvml" not in vars(telemetry)
