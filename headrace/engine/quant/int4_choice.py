"""How int4 weights are kept and computed, decided when settings are resolved (decision 6).  No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from headrace.engine.quant.layout import EXPANDED, PACKED, W4A8
from headrace.errors import ConfigError

VARIABLE = "VLLM_CPU_INT4_W4A8"
ROWS = 8
"""Rows of a step up to which torch's packed int4 product beats bf16 on expanded weights (measured, decision 6)."""
EXPANDED_SHARE = 0.5
"""Expanded int4 weights may take this share of the memory budget; the rest is for the KV cache."""
_GIB = 1 << 30


def choose_int4(
    weight_bytes: Callable[[str], int],
    *,
    rows: float,
    budget_bytes: float,
    environ: Mapping[str, str],
    has_native: bool,
    has_avx512: bool,
) -> tuple[str, str, str]:
    """(W4A8, PACKED or EXPANDED; what to say of it; why).

    torch's packed kernel is only considered with AVX-512, or where expanding would take too much: on AVX2 it is scalar
    (measured: 2 GFLOP/s on two cores).  `weight_bytes` gives what a model's weights take under each choice, `rows` are
    those of a step that reach a matrix, `budget_bytes` is all memory that may be taken.
    Raises ConfigError for a variable with another value than 0 or 1.
    """
    given = environ.get(VARIABLE, "1")
    if given not in ("0", "1"):
        raise ConfigError(f"{VARIABLE}={given} must be 0 or 1")
    if given == "1" and has_native:
        what = f"packed, {_gib(weight_bytes(W4A8))}, multiplied by int8 tokens (W4A8)"
        return W4A8, what, f"native kernel; {VARIABLE}=0 leaves the tokens as they are"
    packed, expanded = weight_bytes(PACKED), weight_bytes(EXPANDED)
    if rows <= ROWS and has_avx512:
        return PACKED, f"packed, {_gib(packed)}", "few sequences a step: torch's packed kernel is faster"
    if expanded > budget_bytes * EXPANDED_SHARE:
        return PACKED, f"packed, {_gib(packed)}", f"expanded they would take {_gib(expanded)} of memory"
    why = f"faster for many sequences a step; --max-num-seqs {ROWS} or less keeps them packed"
    if not has_avx512:
        why = "torch's packed kernel is slow without AVX-512"
    return EXPANDED, f"expanded when loaded, {_gib(expanded)} instead of {_gib(packed)}", why


def _gib(size: int) -> str:
    return f"{size / _GIB:.2f} GiB"
