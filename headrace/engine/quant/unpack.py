"""Stored tensors of one quantised module -> integers with scales, or plain numbers.

Sources of the layouts: AutoGPTQ's and GPTQModel's qlinear modules, AutoAWQ's gemm module, compressed-tensors'
compressors; bit positions are counted from the lowest bit of each 32-bit word.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from headrace.engine.models.tensors import LinearModule
from headrace.engine.quant.config import Quantization
from headrace.errors import ConfigError

# Stored tensor by the last part of its name; None where the checkpoint has none of that name.
Stored = Callable[[str], Tensor | None]
# AutoAWQ writes column 8c + _AWQ_ORDER[i] at bits 4i of word c.
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True, slots=True)
class GroupedWeights:
    """weight[n, k] = scales[n, g] * (values[n, k] - zeros[n, g]), g = k // group_size.

    values  uint8 `[rows, columns]`, below 2**bits
    scales  fp32 `[rows, groups]`; zeros: fp32, same shape
    order   input of each column, `[columns]`; None: column k multiplies input k
    """

    values: Tensor
    scales: Tensor
    zeros: Tensor
    group_size: int
    order: Tensor | None = None

    def dequantize(self) -> Tensor:
        """fp32 `[rows, columns]`, columns in the order of the inputs."""
        rows, columns = self.values.shape
        grouped = self.values.view(rows, -1, self.group_size).to(torch.float32)
        weight = grouped.sub_(self.zeros[..., None]).mul_(self.scales[..., None]).view(rows, columns)
        if self.order is None:
            return weight
        return torch.empty_like(weight).index_copy_(1, self.order, weight)

    def regrouped(self, group_size: int) -> GroupedWeights:
        """The same weights with smaller groups: scales are repeated."""
        times = self.group_size // group_size
        return replace(
            self,
            scales=self.scales.repeat_interleave(times, dim=1),
            zeros=self.zeros.repeat_interleave(times, dim=1),
            group_size=group_size,
        )


def stacked(parts: Sequence[GroupedWeights]) -> GroupedWeights:
    """Rows of several weights as one; their inputs have the same order."""
    if len(parts) == 1:
        return parts[0]
    return replace(
        parts[0],
        values=torch.cat([part.values for part in parts]),
        scales=torch.cat([part.scales for part in parts]),
        zeros=torch.cat([part.zeros for part in parts]),
    )


def grouped_weights(module: LinearModule, scheme: Quantization, stored: Stored) -> GroupedWeights | Tensor:
    """Read a "gptq", "awq" or "packed" module.  Plain fp32 numbers where its groups are not of one size."""
    bits, columns = scheme.bits, module.columns
    if scheme.storage == "gptq":
        values = unpack(_integers(stored, "qweight", module), bits, dim=0).t()
        scales = _scales(stored, "scales", module).t()
        zeros = unpack(_integers(stored, "qzeros", module), bits, dim=1).t()
        # The first format stores zero - 1 in `bits` bits, so a zero point of 0 is stored as the largest value.
        zeros = (zeros + scheme.zero_offset) & ((1 << bits) - 1)
        group_index = stored("g_idx")
    elif scheme.storage == "awq":
        values = _awq_unpack(_integers(stored, "qweight", module)).t()
        scales = _scales(stored, "scales", module).t()
        zeros = _awq_unpack(_integers(stored, "qzeros", module)).t()
        group_index = None
    else:
        values = unpack(_integers(stored, "weight_packed", module), bits, dim=1)[:, :columns]
        scales = _scales(stored, "weight_scale", module)
        zeros = torch.full_like(scales, 1 << (bits - 1))
        if scheme.has_zeros:
            zeros = unpack(_integers(stored, "weight_zero_point", module), bits, dim=0)[: module.rows]
        group_index = stored("weight_g_idx")
    size = columns if scheme.group_size == -1 else scheme.group_size
    scales, zeros = scales.contiguous(), zeros.to(torch.float32).contiguous()
    if group_index is not None:
        index = group_index.to(torch.int64)
        if int(index.min()) < 0 or int(index.max()) >= scales.shape[1]:
            raise ConfigError(f"{module.name}: the group index names groups that have no scales")
        return _in_order(values, scales, zeros, size, index)
    if columns % size:
        return _in_order(values, scales, zeros, size, torch.arange(columns) // size)
    return GroupedWeights(values.contiguous(), scales, zeros, size)


def _in_order(values: Tensor, scales: Tensor, zeros: Tensor, size: int, index: Tensor) -> GroupedWeights | Tensor:
    """Columns with a group number each (`index`): sorted into whole groups, or computed where that cannot be."""
    columns = values.shape[1]
    regular = torch.arange(columns) // size
    if torch.equal(index, regular) and columns % size == 0:
        return GroupedWeights(values.contiguous(), scales, zeros, size)
    order = torch.argsort(index, stable=True)
    if columns % size == 0 and torch.equal(index[order], regular):
        return GroupedWeights(values[:, order].contiguous(), scales, zeros, size, order)
    return (values.to(torch.float32) - zeros[:, index]) * scales[:, index]


def scaled_weight(module: LinearModule, scheme: Quantization, stored: Stored) -> tuple[Tensor, Tensor]:
    """(weight as stored `[rows, columns]`, fp32 scales that broadcast over it) of an "int8" or "fp8" module."""
    weight, scale = stored("weight"), stored(scheme.scale_name)
    assert weight is not None and scale is not None
    wanted = torch.int8 if scheme.storage == "int8" else torch.float8_e4m3fn
    if weight.dtype != wanted:
        raise ConfigError(f"tensor {module.name}.weight is {weight.dtype}; {scheme} stores {wanted}")
    if scheme.storage == "int8" and (zero := stored("weight_zero_point")) is not None and bool(zero.any()):
        raise ConfigError(f"tensor {module.name}.weight_zero_point is not zero; int8 weights are read as symmetric")
    shapes = {(), (1,), (1, 1), (module.rows,), (module.rows, 1)}
    if scheme.block is not None:
        shapes = {(-(-module.rows // scheme.block[0]), -(-module.columns // scheme.block[1]))}
    if tuple(scale.shape) not in shapes:
        raise ConfigError(
            f"tensor {module.name}.{scheme.scale_name} has shape {list(scale.shape)}, which does not fit {scheme} "
            f"weights of {list(weight.shape)}"
        )
    scale = scale.to(torch.float32)
    if scheme.block is not None:
        scale = scale.repeat_interleave(scheme.block[0], 0)[: module.rows]
        return weight, scale.repeat_interleave(scheme.block[1], 1)[:, : module.columns]
    return weight, scale.reshape(-1, 1).expand(module.rows, 1)


def unpack(words: Tensor, bits: int, dim: int) -> Tensor:
    """Unsigned values (uint8) out of int32 words, the lowest bits first along `dim` (0 or 1)."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    mask = (1 << bits) - 1
    if dim == 0:
        return ((words[:, None, :] >> shifts[None, :, None]) & mask).to(torch.uint8).flatten(0, 1)
    return ((words[:, :, None] >> shifts) & mask).to(torch.uint8).flatten(1, 2)


def _awq_unpack(words: Tensor) -> Tensor:
    """uint8 `[rows, 8 * words]`, with AutoAWQ's interleaving undone."""
    values = unpack(words, 4, dim=1).unflatten(1, (-1, 8))
    return torch.empty_like(values).index_copy_(2, torch.tensor(_AWQ_ORDER), values).flatten(1, 2)


def _integers(stored: Stored, suffix: str, module: LinearModule) -> Tensor:
    words = stored(suffix)
    assert words is not None
    if words.dtype != torch.int32:
        raise ConfigError(f"tensor {module.name}.{suffix} is {words.dtype}; packed integers are torch.int32")
    return words


def _scales(stored: Stored, suffix: str, module: LinearModule) -> Tensor:
    scales = stored(suffix)
    assert scales is not None
    if not scales.is_floating_point():
        raise ConfigError(f"tensor {module.name}.{suffix} is {scales.dtype}; scales are floating point")
    return scales.to(torch.float32, copy=True)
