"""What a model computes in and what its KV cache is kept in: names, sizes, and why "auto" becomes what it becomes."""

from __future__ import annotations

from fractions import Fraction

from headrace.engine.models.shape import ModelShape
from headrace.errors import ConfigError
from headrace.sizing import memory

DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
_NAMES = {"float32": "float32", "float": "float32", "fp32": "float32", "bfloat16": "bfloat16", "bf16": "bfloat16"}
_HALF = ("half", "float16", "fp16")
_INT8 = "int8"
_SCALE_BYTES = 4  # int8: of each head's vector


def resolve_dtype(given: str | None, own: str | None, *, native_bf16: bool) -> tuple[str, str]:
    """(dtype, why) from --dtype, the checkpoint's own, and whether bf16 is fast here.  Raises ConfigError."""
    given, own = (given or "auto").removeprefix("torch."), (own or "").removeprefix("torch.")
    if given in _HALF:
        raise ConfigError(
            f"--dtype {given}: this engine does not compute in float16; use --dtype bfloat16 (the same size) "
            "or --dtype float32 (exact for a float16 checkpoint)"
        )
    if given != "auto":
        if given not in _NAMES:
            raise ConfigError(f"--dtype {given!r} is not known; use one of auto, bfloat16, float32")
        return _NAMES[given], "given"
    if own in ("bfloat16", *_HALF) and not native_bf16:
        return "float32", f"the checkpoint is {own}, which this processor would only emulate, slowly"
    if own in DTYPE_BYTES:
        return own, "the checkpoint's own"
    if own in _HALF:
        return "bfloat16", "the checkpoint is float16, which this engine does not compute in; same size"
    return "float32", f"the model's config.json names {own or 'no dtype'}"


def resolve_kv_dtype(given: str | None, dtype: str) -> tuple[str, str]:
    """(dtype of the KV cache, why) from --kv-cache-dtype and the model's dtype.  Raises ConfigError."""
    given = (given or "auto").removeprefix("torch.")
    if given == "auto":
        return dtype, "the model's dtype"
    name = _NAMES.get(given, given)
    if name == _INT8:
        return name, "given; half the bytes of bfloat16, less exact (docs/models.md)"
    if name not in DTYPE_BYTES:
        raise ConfigError(
            f"--kv-cache-dtype {given} is not supported; use auto (the model's dtype), bfloat16, float32, or int8"
        )
    return name, "given"


def kv_bytes_per_token(shape: ModelShape, kv_dtype: str) -> int:
    """What one token keeps in a cache of that dtype, scales included."""
    if kv_dtype == _INT8:
        return memory.kv_bytes_per_token(shape, Fraction(shape.head_dim + _SCALE_BYTES, shape.head_dim))
    return memory.kv_bytes_per_token(shape, DTYPE_BYTES[kv_dtype])
