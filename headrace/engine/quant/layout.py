"""Which tensors a checkpoint must hold, quantised or not, and how many bytes the model takes once loaded.  No torch.

The checkpoint's own tensor names decide which modules are quantised: `lm_head`, routers and whatever a tool left out
have a plain `weight`, the others the tensors of the format.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from math import gcd

from headrace.engine import kernels
from headrace.engine.models.shape import ModelShape
from headrace.engine.models.tensors import LinearModule, linear_modules, other_tensors
from headrace.engine.quant.config import Quantization

W4A8, PACKED, EXPANDED = "w4a8", "packed", "expanded"
"""How int4 weights are kept and computed: packed for the native kernel, which rounds tokens to int8 (for torch's where
there is none); packed for torch's kernel, tokens as they are; multiplied out to the dtype when they are loaded."""
KERNEL_GROUPS = (256, 128, 64, 32)
"""Inputs that may share a scale in torch's int4 kernel for CPUs; it wants outputs in multiples of 16."""
NATIVE_GROUPS = (128, 64, 32, 16)
"""The same in the native kernel: larger groups are split, since a token has a scale for each group as well."""
# Written by tools for activations or a KV cache in fp8, which are kept in the model's dtype here (more exactly).
UNUSED_SUFFIXES = (".input_scale", ".k_scale", ".v_scale", ".q_scale", ".kv_scale", ".output_scale")


@dataclass(frozen=True, slots=True)
class Layout:
    """required   name -> shape; None where several shapes are legal and the reader checks
    optional   names that may be there as well
    quantized  modules whose weights are in the quantised format
    """

    modules: dict[str, LinearModule]
    required: dict[str, tuple[int, ...] | None]
    optional: frozenset[str]
    quantized: frozenset[str]


def layout(shape: ModelShape, stored: Collection[str]) -> Layout:
    """The tensors that a checkpoint with the names `stored` should hold."""
    scheme = shape.quantization
    required: dict[str, tuple[int, ...] | None] = dict(other_tensors(shape))
    optional: set[str] = set()
    quantized: set[str] = set()
    modules = {module.name: module for module in linear_modules(shape)}
    for module in modules.values():
        bias = f"{module.name}.bias"
        if module.has_bias:
            required[bias] = (module.rows,)
        if scheme is None or _is_plain(module, scheme, stored):
            required[f"{module.name}.weight"] = (module.rows, module.columns)
            continue
        quantized.add(module.name)
        if not module.has_bias:
            optional.add(bias)  # AutoGPTQ gives every layer one, of zeros
        needed, allowed = _stored_tensors(module, scheme)
        required |= {f"{module.name}.{suffix}": size for suffix, size in needed.items()}
        optional |= {f"{module.name}.{suffix}" for suffix in allowed}
    if scheme is not None:
        optional |= {name for name in stored if name.endswith(UNUSED_SUFFIXES)}
    return Layout(modules, required, frozenset(optional), frozenset(quantized))


def _is_plain(module: LinearModule, scheme: Quantization, stored: Collection[str]) -> bool:
    return f"{module.name}.weight" in stored and f"{module.name}.{scheme.scale_name}" not in stored


def _stored_tensors(
    module: LinearModule, scheme: Quantization
) -> tuple[dict[str, tuple[int, ...] | None], tuple[str, ...]]:
    """(required, optional) tensors of one quantised module, by the last part of their names."""
    rows, columns = module.rows, module.columns
    per_word = 32 // scheme.bits  # values in one 32-bit integer
    groups = 1 if scheme.group_size == -1 else -(-columns // scheme.group_size)
    if scheme.storage == "gptq":
        tensors: dict[str, tuple[int, ...] | None] = {
            "qweight": (columns // per_word, rows),
            "qzeros": (groups, rows // per_word),
            "scales": (groups, rows),
        }
        return (tensors | {"g_idx": (columns,)}, ()) if scheme.has_order else (tensors, ("g_idx",))
    if scheme.storage == "awq":
        return {
            "qweight": (columns, rows // per_word),
            "qzeros": (groups, rows // per_word),
            "scales": (groups, rows),
        }, ()
    if scheme.storage == "packed":
        tensors = {"weight_packed": (rows, -(-columns // per_word)), "weight_scale": (rows, groups)}
        if scheme.has_zeros:
            tensors["weight_zero_point"] = (-(-rows // per_word), groups)
        if scheme.has_order:
            tensors["weight_g_idx"] = (columns,)
        return tensors, ("weight_shape",)
    return {"weight": (rows, columns), scheme.scale_name: None}, ("weight_zero_point",)


def kernel_group(scheme: Quantization, module: LinearModule, *, is_native: bool) -> int | None:
    """The group size for which the int4 kernel, native or torch's, can hold such a module; None when it cannot.

    A group may be held as several smaller ones with the same scale: one scale a column is fine as well.
    """
    if scheme.bits != 4 or (module.rows % 16 and not is_native):
        return None
    columns = module.columns
    size = gcd(columns if scheme.group_size == -1 else scheme.group_size, columns)
    return next((group for group in (NATIVE_GROUPS if is_native else KERNEL_GROUPS) if size % group == 0), None)


def loaded_bytes(
    shape: ModelShape,
    stored: Collection[str],
    dtype_bytes: int,
    *,
    int4: str = W4A8,
    to_int8: bool = False,
) -> int:
    """Estimate of what the weights take in memory: formats that are not computed in are expanded to the dtype.

    `int4`: W4A8, PACKED or EXPANDED.
    `to_int8`: linear layers and the head are quantised when they are loaded; a tied head is then a matrix of its own.
    """
    scheme = shape.quantization
    quantized = layout(shape, stored).quantized if scheme is not None and stored else frozenset()
    values = sum(_elements(size) for size in other_tensors(shape).values())
    packed_bytes = 0
    is_native = _is_native(int4)
    if shape.tie_word_embeddings and to_int8:
        packed_bytes += _int8_bytes(shape.vocab_size, shape.hidden_size)
    elif shape.tie_word_embeddings and kernels.native() is None:
        values += shape.vocab_size * shape.hidden_size  # torch's packed head cannot look up rows: a second copy
    for module in linear_modules(shape):
        elements = module.rows * module.columns
        if to_int8 and not module.is_router:
            packed_bytes += _int8_bytes(module.rows, module.columns)
        elif scheme is None or module.name not in quantized:
            values += elements
        elif scheme.has_int8_activations:
            packed_bytes += _int8_bytes(module.rows, module.columns)
        elif int4 != EXPANDED and (group := kernel_group(scheme, module, is_native=is_native)) is not None:
            groups = module.columns // group
            if is_native:
                packed_bytes += _native_int4_bytes(module.rows, groups, group)
            else:
                packed_bytes += elements // 2
                values += 2 * module.rows * groups
        else:
            values += elements
    return values * dtype_bytes + packed_bytes


def unfit_int4(shape: ModelShape, stored: Collection[str], int4: str) -> int:
    """How many modules in int4 no packed kernel of that choice can hold."""
    scheme, is_native = shape.quantization, _is_native(int4)
    if scheme is None or scheme.bits != 4:
        return 0
    quantized = layout(shape, stored).quantized
    return sum(
        module.name in quantized and kernel_group(scheme, module, is_native=is_native) is None
        for module in linear_modules(shape)
    )


def _is_native(int4: str) -> bool:
    return int4 == W4A8 and kernels.native() is not None


def _int8_bytes(rows: int, columns: int) -> int:
    return rows * columns + 4 * rows


def _native_int4_bytes(rows: int, groups: int, group: int) -> int:
    """Panels of 16 rows; a scale of 4 bytes and a zero point of one for each group, which holds 32 values at least."""
    return -(-rows // 16) * 16 * groups * (max(group, 32) // 2 + 5)


def _elements(sizes: tuple[int, ...]) -> int:
    return sizes[0] * sizes[1] if len(sizes) == 2 else sizes[0]
