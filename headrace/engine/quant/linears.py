"""Linear layers that compute with integers as they are stored.  Called like `models.layers.Linear`."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from headrace.engine.quant.unpack import GroupedWeights

_ROWS_AT_ONCE = 4096


def has_int4_kernel() -> bool:
    """Whether this torch build can multiply by packed int4 weights on a CPU."""
    return hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu")


@cache
def int8_kernel() -> str:
    """The fastest product of int8 matrices that is exact here: "onednn", "torch", or "plain" where neither is.

    Processors without VNNI may saturate in between, so each is tried on the largest values there are.
    """
    weight = torch.full((16, 64), 127, dtype=torch.int8)
    weight[::2] = -128
    tokens = torch.full((2, 64), 127, dtype=torch.int8)
    tokens[1] = -127
    exact = tokens.to(torch.float64) @ weight.to(torch.float64).t()
    for name in ("onednn", "torch"):
        try:
            product = _Int8Product(weight, torch.ones(16, 1), name)
            if torch.equal(product(tokens.to(torch.float32)).to(torch.float64), exact):
                return name
        except (AttributeError, RuntimeError):
            continue
    return "plain"


def int8_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(int8 `[out, in]`, fp32 scales `[out, 1]`) of a weight `[out, in]`: a row's largest magnitude is 127.

    Some rows at a time, so that a head needs no second copy of itself in fp32.
    """
    quantized = torch.empty(weight.shape, dtype=torch.int8)
    scales = torch.empty(weight.shape[0], 1)
    for first in range(0, weight.shape[0], _ROWS_AT_ONCE):
        rows = slice(first, first + _ROWS_AT_ONCE)
        values = weight[rows].to(torch.float32)
        scales[rows] = values.abs().amax(dim=1, keepdim=True).div_(127.0).clamp_min_(torch.finfo(torch.float32).tiny)
        quantized[rows] = (values / scales[rows]).round_()
    return quantized, scales


class _Int8Product:
    """(tokens Wᵀ) * scales for whole numbers: tokens fp32 `[rows, in]` in [-127, 127], W int8 `[out, in]`."""

    def __init__(self, weight: Tensor, scales: Tensor, kernel: str) -> None:
        self._kernel = kernel
        self._scales = scales.reshape(-1).contiguous()
        if kernel == "onednn":
            # Packed once.  `torch._int_mm` reorders the weight in every call: measured on one Zen 5 core,
            # 2048 -> 16384 with 4 rows, 3.7 ms against 1.6 ms (bf16: 2.3 ms).
            self._zeros = torch.zeros(weight.shape[0], dtype=torch.int64)
            weight = torch.ops.onednn.qlinear_prepack(weight, None)
        elif kernel == "plain":
            weight = weight.to(torch.float64)  # holds every sum of int8 products exactly
        self._weight = weight

    def __call__(self, tokens: Tensor) -> Tensor:
        if self._kernel == "onednn":
            # Unsigned with a zero point of 128: signed tokens have no kernel before AMX.
            unsigned = (tokens + 128).to(torch.uint8)
            product: Tensor = torch.ops.onednn.qlinear_pointwise(
                *(unsigned, 1.0, 128, self._weight, self._scales, self._zeros),
                *(None, 1.0, 0, torch.float32, "none", [], ""),
            )
            return product
        if self._kernel == "torch":
            return torch._int_mm(tokens.to(torch.int8), self._weight.t()).to(torch.float32).mul_(self._scales)
        return F.linear(tokens.to(torch.float64), self._weight).to(torch.float32).mul_(self._scales)


class Int4Linear:
    """y = x Wᵀ + b with W kept in 4 bits: torch's CPU kernel, which accumulates in fp32.

    A row's result does not depend on the other rows.  Scales and zero points are rounded to `dtype`.
    """

    def __init__(self, weights: GroupedWeights, bias: Tensor | None, dtype: torch.dtype) -> None:
        self._packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(weights.values.to(torch.int32), 1)
        # The kernel computes (value - 8) * scale + shift.
        shifts = (8.0 - weights.zeros) * weights.scales
        self._scales = torch.stack((weights.scales.t(), shifts.t()), dim=-1).to(dtype).contiguous()
        self._group_size = weights.group_size
        self._order = weights.order
        self._bias = bias
        held = [self._packed, self._scales, self._order, self._bias]
        self.num_bytes = sum(tensor.nbytes for tensor in held if tensor is not None)

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        # The kernel reads rows of consecutive numbers; a gate's half or a view of heads is not that.
        x = x.contiguous() if self._order is None else x.index_select(1, self._order)
        y = torch.ops.aten._weight_int4pack_mm_for_cpu(x, self._packed, self._group_size, self._scales)
        y = y if self._bias is None else y.add_(self._bias)
        return y if residual is None else residual + y


class Int8Linear:
    """y = (xq Wqᵀ) * scale of the token * scale of the output + b, both sides int8 and summed exactly in int32 (W8A8).

    A token's scale is its largest magnitude / 127.  Integer sums have no order, so results do not depend on the batch.
    """

    def __init__(self, weight: Tensor, scales: Tensor, bias: Tensor | None, kernel: str | None = None) -> None:
        """`weight` int8 `[out, in]`, `scales` fp32 `[out, 1]`; `kernel` as of `int8_kernel`, None: the best here."""
        self._product = _Int8Product(weight, scales, kernel or int8_kernel())
        self._bias = bias
        self.num_bytes = weight.nbytes + scales.nbytes + (bias.nbytes if bias is not None else 0)

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        values = x.to(torch.float32)
        # A row of zeros has no scale; any will do.
        scale = values.abs().amax(dim=-1, keepdim=True).div_(127.0).clamp_min_(torch.finfo(torch.float32).tiny)
        y = self._product((values / scale).round_()).mul_(scale).to(x.dtype)
        y = y if self._bias is None else y.add_(self._bias)
        return y if residual is None else residual + y
