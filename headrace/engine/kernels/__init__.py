"""Native kernels: C++ behind a torch-free interface, and a torch twin of each.

`native()` is the extension module, or None where it was not built or the processor has no AVX2; then the twins compute.
Nothing loads it on import.  cpp/headrace.hpp says how kernels are written; docs/kernels.md what each one does.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType


@cache
def load() -> tuple[ModuleType | None, str]:
    """(the extension or None, the instruction set in use or why there is none)."""
    try:
        from headrace.engine.kernels import _native
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) or "cannot import name" in str(error)
        return None, "no C++ compiler worked when headrace was installed" if missing else f"cannot be loaded ({error})"
    if _native.best_isa() == "none":
        return None, "this processor has no AVX2 with FMA"
    return _native, str(_native.isa())


def native() -> ModuleType | None:
    """The extension module, None where torch must compute."""
    return load()[0]
