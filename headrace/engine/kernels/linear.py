"""y = x Wᵀ + b from weights that are packed once (cpp/linear.hpp), and its torch twin.

Hidden states are fp32 between native kernels; weights keep the model's dtype in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from headrace.engine import pages
from headrace.engine.quant.unpack import GroupedWeights, stacked

PANEL = 16
_FORMATS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.int8: "int8"}


class NativeLinear:
    """A linear layer of the native kernels.  Called like `models.layers.Linear`, with fp32 in and out.

    Every output is one chain of multiply-adds over the inputs in their order: a row's result does not depend on the
    other rows or on the number of threads.
    """

    def __init__(
        self,
        native: ModuleType,
        parts: Sequence[Tensor] | Sequence[GroupedWeights],
        bias: Tensor | None = None,
        *,
        gated: bool = False,
        scales: Tensor | None = None,
    ) -> None:
        """`parts` `[outputs, inputs]` follow each other in the output.  `gated`: they are gate and up, of one size in
        multiples of 16, and the layer gives silu(gate(x)) * up(x).  int8 parts come with `scales`, one an output;
        then x is rounded to int8 token by token, and sums are exact.  int4 parts have groups of 16 to 256 inputs
        and one `order`; then x is rounded to int8 group by group, and sums within a group are exact."""
        held = [_rows_of(part) for part in (parts if gated or len(parts) == 1 else [_whole(parts)])]
        first = held[0]
        inputs, self._outputs = first.values.shape[1], sum(part.values.shape[0] for part in held)
        self._gated = gated
        self.inputs, self.outputs = inputs, self._outputs // 2 if gated else self._outputs
        self._matrix = native.Linear(first.format, self._outputs, inputs, first.group_size)
        self._weight = pages.carve(self._matrix.packed_bytes)
        self._bias = _padded(bias, self._outputs, gated)
        self._scales = _padded(scales, self._outputs, gated)
        self._order = first.order
        self._matrix.set_weight(self._weight.data_ptr(), *map(_address, (self._scales, self._bias, self._order)))
        for panel, part in enumerate(held):  # gated: they alternate
            self._matrix.pack(
                *(part.values.data_ptr(), part.values.shape[0], panel, len(held)),
                *(_address(part.scales), _address(part.zeros)),
            )
        kept = (self._weight, self._bias, self._scales, self._order)
        self.num_bytes = sum(tensor.nbytes for tensor in kept if tensor is not None)

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """fp32 `[rows, outputs]` for fp32 x `[rows, inputs]`; `residual` of the result's shape is added."""
        if x.stride(1) != 1:
            x = x.contiguous()
        y = torch.empty(x.shape[0], self.outputs)
        residual = None if residual is None else residual.contiguous()
        self._matrix.run(
            x.data_ptr(), x.shape[0], x.stride(0), y.data_ptr(), self.outputs, _address(residual), self._gated
        )
        return y

    @property
    def is_gated(self) -> bool:
        return self._gated

    @property
    def address(self) -> int:
        """Of the matrix, for the native layers; valid while this object lives."""
        return int(self._matrix.address)

    def rows(self, ids: Tensor) -> Tensor:
        """Rows `ids` of the matrix in fp32, `[len(ids), inputs]`: how a tied head serves as the embedding."""
        ids = ids.contiguous()
        out = torch.empty(ids.shape[0], self.inputs)
        self._matrix.unpack(ids.data_ptr(), ids.shape[0], out.data_ptr())
        return out if self._scales is None else out.mul_(self._scales[ids].unsqueeze(1))


def can_gate(weights: Sequence[Tensor]) -> bool:
    """Whether two weights can be interleaved panel by panel."""
    gate, up = weights
    return gate.shape == up.shape and gate.shape[0] % PANEL == 0


def twin(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None, *, gated: bool = False
) -> Tensor:
    """What `NativeLinear` computes, with torch and in fp32; gated: `weight` is gate above up."""
    y = F.linear(x, weight.float(), None if bias is None else bias.float())
    if gated:
        gate, up = y.chunk(2, dim=-1)
        y = F.silu(gate) * up
    return y if residual is None else residual + y


def int4_twin(x: Tensor, weights: GroupedWeights, bias: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
    """What `NativeLinear` computes from int4 weights, to the bit, with torch; x fp32 `[rows, inputs]`."""
    if weights.order is not None:
        x = x[:, weights.order]
    size = weights.group_size
    tokens = x.unflatten(1, (-1, size))
    scales = tokens.abs().amax(dim=2).div_(127.0).clamp_min_(torch.finfo(torch.float32).tiny)
    tokens = (tokens * (1.0 / scales).unsqueeze(2)).round_()
    values = weights.values.unflatten(1, (-1, size))
    y = torch.zeros(x.shape[0], values.shape[0])
    for group in range(values.shape[1]):
        whole = values[:, group].double() - weights.zeros[:, group, None].double()
        exact = (tokens[:, group].double() @ whole.t()).float()
        y = y + exact * (weights.scales[:, group] * scales[:, group, None])
    y = y if bias is None else y + bias.float()
    return y if residual is None else residual + y


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of a matrix as the packer reads them: int4 in bytes, with scales and zero points `[rows, groups]`."""

    format: str
    values: Tensor
    group_size: int = 0
    scales: Tensor | None = None
    zeros: Tensor | None = None
    order: Tensor | None = None


def _rows_of(part: Tensor | GroupedWeights) -> _Rows:
    if isinstance(part, Tensor):
        return _Rows(_FORMATS[part.dtype], part.contiguous())
    return _Rows(
        "int4",
        part.values.contiguous(),
        part.group_size,
        part.scales.contiguous(),
        part.zeros.to(torch.uint8).contiguous(),
        None if part.order is None else part.order.to(torch.int32),
    )


def _whole(parts: Sequence[Tensor] | Sequence[GroupedWeights]) -> Tensor | GroupedWeights:
    plain = [part for part in parts if isinstance(part, Tensor)]
    return torch.cat(plain) if plain else stacked([part for part in parts if isinstance(part, GroupedWeights)])


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _padded(bias: Tensor | None, outputs: int, gated: bool) -> Tensor | None:
    """fp32, in the order of the panels, zeros behind the last output."""
    if bias is None:
        return None
    values = bias.to(torch.float32).reshape(-1)
    if gated:
        values = values.view(2, -1, PANEL).transpose(0, 1).reshape(-1)
    return F.pad(values, (0, -outputs % PANEL)).contiguous()
