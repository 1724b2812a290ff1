"""The extension, as it was before a test changed its threads or instruction set."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest

from headrace.engine import kernels


@pytest.fixture
def native() -> Iterator[ModuleType]:
    module = kernels.native()
    if module is None:
        pytest.skip(f"no native kernels: {kernels.load()[1]}")
    threads, isa = module.num_threads(), module.isa()
    yield module
    module.set_num_threads(threads)
    module.use_isa(isa)
