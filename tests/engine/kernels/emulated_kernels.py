"""pytest plugin: the module HEADRACE_EMULATED computes in place of the extension, with HEADRACE_EMULATED_ISA."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType


def load(path: Path) -> ModuleType:
    """The extension module at `path`."""
    spec = importlib.util.spec_from_file_location("emulated._native", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pytest_configure() -> None:
    from headrace.engine import kernels

    module = load(Path(os.environ["HEADRACE_EMULATED"]))
    module.use_isa(os.environ["HEADRACE_EMULATED_ISA"])
    sys.modules["headrace.engine.kernels._native"] = kernels._native = module  # type: ignore[attr-defined]
    kernels.load.cache_clear()
    assert kernels.load() == (module, os.environ["HEADRACE_EMULATED_ISA"])


def pytest_report_header() -> str:
    return f"kernels: {os.environ['HEADRACE_EMULATED_ISA']}, emulated"
