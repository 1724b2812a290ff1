"""The AVX-512 kernels, computed by AVX2 through SIMDe: their own tests pass, and they give the numbers of AVX2.

For processors without AVX-512.  What emulation cannot show: how the real vdpbf16ps rounds within a pair, and speed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from emulated_kernels import load

from headrace.engine import kernels
from headrace.engine.kernels.linear import NativeLinear, twin
from headrace.engine.quant.unpack import GroupedWeights

pytestmark = pytest.mark.slow

HERE = Path(__file__).resolve().parent
TESTS = HERE.parents[1]
SOURCES = Path(kernels.__file__).resolve().parent
AVX512 = ("avx512", "avx512_bf16")
SIZES = [(48, 64), (17, 1000), (100, 37), (160, 2100)]


def simde() -> Path | None:
    """The folder that holds simde/: HEADRACE_SIMDE, or a system's (Debian: libsimde-dev)."""
    given = os.environ.get("HEADRACE_SIMDE")
    folders = [Path(given)] if given else [Path("/usr/include"), Path("/usr/local/include")]
    return next((folder for folder in folders if (folder / "simde" / "x86" / "avx512.h").is_file()), None)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The extension with emulated AVX-512 kernels."""
    headers = simde()
    if headers is None:
        pytest.skip("SIMDe's headers are not here (Debian: libsimde-dev; HEADRACE_SIMDE names another folder)")
    if shutil.which("cmake") is None or shutil.which("c++") is None:
        pytest.skip("no cmake or no C++ compiler")
    if kernels.native() is None:
        pytest.skip(f"no native kernels: {kernels.load()[1]}")
    folder = tmp_path_factory.mktemp("emulated")
    for command in (
        [
            "-S",
            str(SOURCES),
            "-B",
            str(folder),
            f"-DHEADRACE_EMULATE={headers}",
            f"-DPython_EXECUTABLE={sys.executable}",
        ],
        ["--build", str(folder), "--target", "_native", "--parallel", "2"],
    ):
        done = subprocess.run(["cmake", *command], capture_output=True, text=True)
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return next(folder.glob("_native*.so"))


@pytest.fixture
def emulated(library: Path) -> Iterator[ModuleType]:
    module = sys.modules.get("emulated._native") or load(library)
    sys.modules["emulated._native"] = module
    yield module
    module.use_isa("avx2")


@pytest.mark.parametrize("isa", AVX512)
def test_the_kernels_own_tests_pass(library: Path, isa: str) -> None:
    files = [
        *sorted(HERE.glob("test_linear*.py")),
        HERE / "test_native.py",
        *sorted((TESTS / "engine").glob("test_*_native.py")),
    ]
    environment = os.environ | {
        "HEADRACE_EMULATED": str(library),
        "HEADRACE_EMULATED_ISA": isa,
        "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "emulated_kernels", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *map(str, files)], env=environment, cwd=TESTS.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


@pytest.mark.parametrize(("outputs", "inputs"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_bf16_instructions_every_set_gives_the_same_bits(
    emulated: ModuleType, dtype: torch.dtype, outputs: int, inputs: int
) -> None:
    weight = (torch.randn(outputs, inputs) * inputs**-0.5).to(dtype)
    x = torch.randn(70, inputs)
    results = []
    for isa in ("avx2", "avx512"):
        emulated.use_isa(isa)
        results.append(NativeLinear(emulated, [weight], torch.ones(outputs))(x))
    assert torch.equal(*results)


@pytest.mark.parametrize(("outputs", "inputs"), SIZES)
def test_bf16_instructions_differ_by_the_rounding_of_their_inputs(
    emulated: ModuleType, outputs: int, inputs: int
) -> None:
    weight = (torch.randn(outputs, inputs) * inputs**-0.5).bfloat16()
    emulated.use_isa("avx512_bf16")
    layer = NativeLinear(emulated, [weight])
    for rows in (1, 2, 5, 12, 13, 70):
        x = torch.randn(rows, inputs)
        torch.testing.assert_close(layer(x), twin(x.bfloat16().float(), weight), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("outputs", "inputs"), SIZES)
def test_int8_products_are_the_same_bits_on_every_set(emulated: ModuleType, outputs: int, inputs: int) -> None:
    weight = torch.randint(-128, 128, (outputs, inputs), dtype=torch.int8)
    scales, x = torch.rand(outputs) * 0.01 + 0.001, torch.randn(70, inputs)
    x[0], x[1], x[2] = 1.0, -1.0, 0.0
    results = []
    for isa in ("avx2", *AVX512):
        emulated.use_isa(isa)
        results.append(NativeLinear(emulated, [weight], scales=scales)(x))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize(("outputs", "inputs", "group"), [(48, 64, 16), (17, 2240, 64), (100, 1280, 256)])
def test_int4_products_are_the_same_bits_on_every_set(
    emulated: ModuleType, outputs: int, inputs: int, group: int
) -> None:
    weight = GroupedWeights(
        values=torch.randint(0, 16, (outputs, inputs)).to(torch.uint8),
        scales=torch.rand(outputs, inputs // group) * 0.01 + 0.001,
        zeros=torch.randint(0, 16, (outputs, inputs // group)).float(),
        group_size=group,
    )
    weight.values[0] = 15
    x = torch.randn(70, inputs)
    x[0], x[1], x[2] = 1.0, -1.0, 0.0
    results = []
    for isa in ("avx2", *AVX512):
        emulated.use_isa(isa)
        results.append(NativeLinear(emulated, [weight])(x))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
