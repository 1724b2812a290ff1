"""The extension: found or not, its threads, and the instruction sets that it chooses from."""

from __future__ import annotations

import sys
import threading
from types import ModuleType

import numpy as np
import pytest

from headrace.engine import kernels


def test_without_the_extension_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels.load.cache_clear()
    monkeypatch.setitem(sys.modules, "headrace.engine.kernels._native", None)
    monkeypatch.delattr(kernels, "_native", raising=False)
    assert kernels.native() is None
    assert kernels.load()[1] == "no C++ compiler worked when headrace was installed"
    kernels.load.cache_clear()


def test_threads_grow_and_shrink_and_the_rates_are_measured_on_all(native: ModuleType) -> None:
    values = np.ones(1 << 16, dtype=np.float32)
    for threads in (1, 3, 2):
        native.set_num_threads(threads)
        assert native.num_threads() == threads
        assert native.read_rate(values.ctypes.data, values.nbytes) > 0
        assert all(native.peak_rate(kind, 100) > 0 for kind in ("fp32", "bf16", "int8", "int4"))
    with pytest.raises(ValueError, match="between 1 and 1024"):
        native.set_num_threads(0)


def test_several_python_threads_may_compute_at_once(native: ModuleType) -> None:
    native.set_num_threads(2)
    values = np.ones(1 << 14, dtype=np.float32)
    rates: list[float] = []

    def work() -> None:
        for _ in range(50):
            rates.append(native.read_rate(values.ctypes.data, values.nbytes, 1))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(rates) == 150 and min(rates) > 0


def test_an_instruction_set_that_the_processor_lacks_is_refused(native: ModuleType) -> None:
    native.use_isa("avx2")
    assert native.isa() == "avx2"
    if native.best_isa() == "avx2":
        with pytest.raises(ValueError, match="runs avx2 at best, not avx512"):
            native.use_isa("avx512")
    with pytest.raises(ValueError, match="no instruction set is named sse"):
        native.use_isa("sse")
