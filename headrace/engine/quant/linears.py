"""Linear layers that compute with integers as they are stored.  Called like `models.layers.Linear`."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from headrace.engine.quant.unpack import GroupedWeights


def has_int4_kernel() -> bool:
    """Whether this torch build can multiply by packed int4 weights on a CPU."""
    return hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu")


def has_int8_kernel() -> bool:
    """Whether this torch build multiplies int8 matrices into int32 on a CPU."""
    try:
        torch._int_mm(torch.ones(1, 32, dtype=torch.int8), torch.ones(32, 16, dtype=torch.int8))
    except (AttributeError, RuntimeError):
        return False
    return True


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

    def __call__(self, x: Tensor) -> Tensor:
        # The kernel reads rows of consecutive numbers; a gate's half or a view of heads is not that.
        x = x.contiguous() if self._order is None else x.index_select(1, self._order)
        y = torch.ops.aten._weight_int4pack_mm_for_cpu(x, self._packed, self._group_size, self._scales)
        return y if self._bias is None else y.add_(self._bias)


class Int8Linear:
    """y = (xq Wqᵀ) * scale of the token * scale of the output + b, both sides int8 and summed exactly in int32 (W8A8).

    A token's scale is its largest magnitude / 127.  Integer sums have no order, so results do not depend on the batch.
    """

    def __init__(self, weight: Tensor, scales: Tensor, bias: Tensor | None) -> None:
        """`weight` int8 `[out, in]`, `scales` fp32 `[out, 1]`."""
        self._use_kernel = has_int8_kernel()
        # Inputs first: measured on two Zen 5 cores, 896 -> 9728, 0.32 against 0.55 ms at 4 rows, the same above 200.
        self._weight = weight.t().contiguous()
        if not self._use_kernel:
            self._weight = weight.to(torch.float64)
        self._scales = scales.reshape(1, -1).contiguous()
        self._bias = bias
        self.num_bytes = self._weight.nbytes + self._scales.nbytes + (bias.nbytes if bias is not None else 0)

    def __call__(self, x: Tensor) -> Tensor:
        values = x.to(torch.float32)
        # A row of zeros has no scale; any will do.
        scale = values.abs().amax(dim=-1, keepdim=True).div_(127.0).clamp_min_(torch.finfo(torch.float32).tiny)
        rounded = (values / scale).round_().to(torch.int8)
        if self._use_kernel:
            sums = torch._int_mm(rounded, self._weight).to(torch.float32)
        else:
            # fp64 holds every sum of int8 products exactly, so the order of summation does not matter here either.
            sums = F.linear(rounded.to(torch.float64), self._weight).to(torch.float32)
        y = sums.mul_(scale).mul_(self._scales).to(x.dtype)
        return y if self._bias is None else y.add_(self._bias)
