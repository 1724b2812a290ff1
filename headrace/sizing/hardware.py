"""Devices: memory as the driver reports it, bandwidth, dense peaks.  Every number has its source; what is not known
is absent, and a calculation that needs it says so.

Peaks are dense (the sparse number is twice it) and with float32 accumulation.  Tables that are in use disagree
(an L40S at 1,466 fp8 TFLOP/s is the sparse number; an A10 has 24 GB, not 28): docs/sizing.md.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from headrace.errors import ConfigError

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Figure:
    """A number and where it is from; read in November 2026."""

    value: float
    source: str


@dataclass(frozen=True, slots=True)
class Device:
    """One accelerator.

    memory       bytes in total as the driver reports them (the marketing size is larger); measured where the source
                 is a log, else the nominal size of the source
    bandwidth    bytes/s
    peaks        dtype -> FLOP/s: "bf16" (and fp16), "fp8", "fp4"
    link         bytes/s to its neighbours, one way
    names        other spellings that are accepted
    """

    name: str
    memory: Figure
    bandwidth: Figure | None = None
    peaks: tuple[tuple[str, Figure], ...] = ()
    link: Figure | None = None
    names: tuple[str, ...] = ()

    @property
    def gets_large_defaults(self) -> bool:
        """vLLM gives cards of 70 GiB and more larger steps, but not A100s (read in its arguments' defaults)."""
        return self.memory.value >= 70 * GIB and not self.name.startswith("A100")

    def peak(self, dtype: str) -> Figure | None:
        return dict(self.peaks).get(dtype)


_AIC = "aiconfigurator systems/*.yaml (github.com/ai-dynamo/aiconfigurator)"
_VIEWER = "LLM-Viewer hardwares/hardware_params.py (github.com/hahnyuan/LLM-Viewer)"
_ANALYSIS = "llm-analysis gpu_configs/*.json (github.com/cli99/llm-analysis)"
_INFER = "InferSim hardware/gpu.py (github.com/alibaba/InferSim)"
_LOGS = "vLLM start-up logs, requested / utilization (github.com/Huzifa1/vllm-profiling)"
_VLLM = "github.com/vllm-project/vllm/issues/"


def _gib(value: float, source: str) -> Figure:
    return Figure(value * GIB, source)


def _tb(value: float, source: str) -> Figure:
    return Figure(value * 1e12, source)


def _gb(value: float, source: str) -> Figure:
    return Figure(value * 1e9, source)


def _peaks(
    source: str, bf16: float, fp8: float | None = None, fp4: float | None = None
) -> tuple[tuple[str, Figure], ...]:
    found = (("bf16", bf16), ("fp8", fp8), ("fp4", fp4))
    return tuple((dtype, Figure(value * 1e12, source)) for dtype, value in found if value is not None)


DEVICES: tuple[Device, ...] = (
    Device(
        "A100-40GB",
        _gib(39.49, _LOGS),
        _tb(1.555, _AIC),
        _peaks(_AIC, 312),
        _gb(300, _AIC),
        ("A100 40GB", "A100-SXM4-40GB"),
    ),
    Device(
        "A100-80GB",
        _gib(79.15, f"{_VLLM}4408: total capacity in an allocator's message"),
        _tb(2.039, _AIC),
        _peaks(_AIC, 312),
        _gb(300, _AIC),
        ("A100", "A100 80GB", "A100-SXM4-80GB", "A100-80G"),
    ),
    Device(
        "A100-80GB-PCIe",
        _gib(79.15, f"{_VLLM}4408: total capacity in an allocator's message"),
        _tb(1.935, _AIC),
        _peaks(_AIC, 312),
        _gb(32, _AIC),
        ("A100 PCIe", "A100-PCIE-80GB"),
    ),
    Device("A800-80GB", _gb(80, _VIEWER), _tb(2.039, _VIEWER), _peaks(_VIEWER, 312), None, ("A800",)),
    Device("A10", _gb(24, _ANALYSIS), _tb(0.600, _ANALYSIS), _peaks(_ANALYSIS, 125), _gb(32, _ANALYSIS)),
    Device("A30", _gib(23.50, f"{_VLLM}2554: total capacity"), _tb(0.933, _AIC), _peaks(_AIC, 165), _gb(32, _AIC)),
    Device("A40", _gb(48, _VIEWER), _tb(0.696, _VIEWER), _peaks(_VIEWER, 150)),
    Device("A6000", _gb(48, _ANALYSIS), _tb(0.768, _ANALYSIS), _peaks(_ANALYSIS, 155), None, ("RTX A6000",)),
    Device(
        "V100-32GB", _gb(32, _ANALYSIS), _tb(0.900, _ANALYSIS), _peaks(_ANALYSIS, 125), _gb(150, _ANALYSIS), ("V100",)
    ),
    Device(
        "L4",
        _gib(22.49, "kvplan 0.1.1 (pypi.org/project/kvplan)"),
        _tb(0.300, _AIC),
        _peaks(_AIC, 121, 242),
        _gb(32, _AIC),
    ),
    Device(
        "L40S",
        _gib(44.53, f"{_VLLM}15598: total capacity"),
        _tb(0.864, _AIC),
        _peaks(_AIC, 362, 733),
        _gb(32, _AIC),
    ),
    Device(
        "RTX-3090",
        _gib(23.58, f"{_VLLM}10517: total in vLLM's start-up log"),
        names=("RTX 3090", "3090"),
    ),
    Device(
        "RTX-4090",
        Figure(25_250_627_584, "meta.json of a measured run (github.com/casys-kaist/LLMServingSim)"),
        _tb(1.008, "waredb.com/processor/nvidia-geforce-rtx-4090"),
        _peaks("waredb.com/processor/nvidia-geforce-rtx-4090", 165, 330),
        None,
        ("RTX 4090", "4090"),
    ),
    Device(
        "RTX-PRO-6000",
        _gib(97_887 / 1024, _AIC),
        _tb(1.792, _AIC),
        _peaks(_AIC, 468, 936),
        _gb(64, _AIC),
        ("RTX PRO 6000", "RTXPRO6000"),
    ),
    Device("H100-PCIe", _gb(80, _AIC), _tb(2.0, _AIC), _peaks(_AIC, 756, 1513), _gb(64, _AIC), ("H100 PCIe",)),
    Device(
        "H100-80GB",
        _gib(
            79.18, "vLLM logs quoted by llm-d-planner, 79.18 to 79.22 GiB (github.com/llm-d-incubation/llm-d-planner)"
        ),
        _tb(3.35, _AIC),
        _peaks(_AIC, 989, 1978),
        _gb(450, _AIC),
        ("H100", "H100 80GB", "H100-SXM", "H100 SXM", "H100-SXM5-80GB"),
    ),
    Device("H100-NVL", _gib(93.09, _LOGS), names=("H100 NVL", "H100 NVL 94GB")),
    Device("H800", _gb(80, _INFER), _tb(3.35, _INFER), _peaks(_INFER, 989, 1979), _gb(200, _INFER)),
    Device("H20", _gb(96, _INFER), _tb(4.0, _INFER), _peaks(_INFER, 148, 296), _gb(450, _INFER)),
    Device(
        "H200",
        _gib(139.8, "total capacity in allocator's messages of public logs, 139.72 to 139.81 GiB"),
        _tb(4.8, _AIC),
        _peaks(_AIC, 989, 1978),
        _gb(450, _AIC),
        ("H200-141GB", "H200 SXM"),
    ),
    Device("B200", _gb(180, _AIC), _tb(7.7, _AIC), _peaks(_AIC, 2250, 4500, 9000), _gb(900, _AIC)),
    Device(
        "GB200",
        _gib(189_471 / 1024, _AIC),
        _tb(8.0, _AIC),
        _peaks(_AIC, 2500, 5000, 10_000),
        _gb(900, _AIC),
    ),
)


def _key(name: str) -> str:
    return "".join(each for each in name.lower().removeprefix("nvidia") if each.isalnum())


_BY_KEY = {_key(name): device for device in DEVICES for name in (device.name, *device.names)}


def find_device(name: str) -> Device:
    """The device of that name, spelled with or without dashes and spaces.  ConfigError lists near names."""
    found = _BY_KEY.get(_key(name))
    if found is not None:
        return found
    near = [_BY_KEY[each].name for each in difflib.get_close_matches(_key(name), _BY_KEY, n=3, cutoff=0.5)]
    known = ", ".join(dict.fromkeys(near)) or ", ".join(device.name for device in DEVICES)
    raise ConfigError(
        f"--gpu {name} is not in the table of devices (near: {known}); give its memory instead, e.g. --memory 24, "
        "as `nvidia-smi --query-gpu=memory.total --format=csv` reports it"
    )
