"""y = x Wᵀ + b from weights that are packed once (cpp/linear.hpp), and its torch twin.

Hidden states are fp32 between native kernels; weights keep the model's dtype in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

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
        parts: Sequence[Tensor],
        bias: Tensor | None = None,
        *,
        gated: bool = False,
        scales: Tensor | None = None,
    ) -> None:
        """`parts` `[outputs, inputs]` follow each other in the output.  `gated`: they are gate and up, of one size in
        multiples of 16, and the layer gives silu(gate(x)) * up(x).  int8 parts come with `scales`, one an output;
        then x is rounded to int8 token by token, and sums are exact."""
        inputs, self._outputs = parts[0].shape[1], sum(part.shape[0] for part in parts)
        self._gated = gated
        self.inputs, self.outputs = inputs, self._outputs // 2 if gated else self._outputs
        self._matrix = native.Linear(_FORMATS[parts[0].dtype], self._outputs, inputs)
        self._weight = torch.empty(self._matrix.packed_bytes, dtype=torch.uint8)
        self._bias = _padded(bias, self._outputs, gated)
        self._scales = _padded(scales, self._outputs, gated)
        self._matrix.set_weight(self._weight.data_ptr(), _address(self._scales), _address(self._bias))
        if gated:
            for first, part in enumerate(parts):
                self._matrix.pack(part.contiguous().data_ptr(), part.shape[0], first, 2)
        else:
            whole = torch.cat(list(parts)) if len(parts) > 1 else parts[0].contiguous()
            self._matrix.pack(whole.data_ptr(), self._outputs)
        held = (self._weight, self._bias, self._scales)
        self.num_bytes = sum(tensor.nbytes for tensor in held if tensor is not None)

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


def can_gate(parts: Sequence[object]) -> bool:
    """Whether two weights are tensors that can be interleaved panel by panel."""
    gate, up = parts
    if not isinstance(gate, Tensor) or not isinstance(up, Tensor):
        return False
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
