"""The parts of a decoder layer, on CPU through torch operations.

Linear layers use oneDNN with weights packed once at load.  Measured on two Zen 5 cores (fp32, 768 -> 4608, M = 256):
4.3 ms packed against 10.3 ms for `F.linear`; in bf16 the gain is at small M.  As important: the packed kernels give
bit-identical rows for every M, where MKL's fp32 product changes with M.  Greedy tokens then do not depend on how a
step was batched.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from torch import Tensor

from headrace.engine.models.rope import RopeScaling
from headrace.errors import ConfigError


def padded_rows(count: int) -> int:
    """Rows to compute for `count` real ones.

    oneDNN builds a kernel for each new number of rows (about 1 ms a layer shape, measured); padding to multiples of
    4, 8, 16 or 32 leaves some tens of numbers instead of thousands.
    """
    for limit, step in ((4, 1), (32, 4), (128, 8), (512, 16)):
        if count <= limit:
            return -(-count // step) * step
    return -(-count // 32) * 32


class Projection(Protocol):
    """A linear layer, however its weights are kept: `[rows, in]` -> `[rows, out]`, plus `residual` of that shape."""

    num_bytes: int

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor: ...


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this torch build and CPU have oneDNN's packed linear for `dtype`."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


class Linear:
    """y = x Wᵀ + b for x `[rows, in]`.  Takes `weight` `[out, in]` and packs it where oneDNN can."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.num_bytes = weight.nbytes + (bias.nbytes if bias is not None else 0)
        self._bias = bias
        self._is_packed = can_pack(weight.dtype)
        if self._is_packed:
            weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
        self._weight = weight

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if self._is_packed:
            y = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        else:
            y = F.linear(x, self._weight, self._bias)
        return y if residual is None else residual + y


class Gated:
    """activation(gate(x)) * up(x), gate and up in one projection `[2 * intermediate, hidden]`.

    The activation is "silu" or "gelu_tanh" (GELU in its tanh form).
    """

    def __init__(self, gate_up: Projection, activation: str) -> None:
        self._gate_up = gate_up
        self._is_gelu = activation == "gelu_tanh"
        self.num_bytes = gate_up.num_bytes

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        gate, up = self._gate_up(x).chunk(2, dim=-1)
        y = (F.gelu(gate, approximate="tanh") if self._is_gelu else F.silu(gate)) * up
        return y if residual is None else residual + y


class Embedding:
    """Rows of a table, in `dtype`."""

    def __init__(self, table: Tensor, dtype: torch.dtype) -> None:
        self._table = table
        self._dtype = dtype
        self.num_bytes = table.nbytes

    def __call__(self, token_ids: Tensor) -> Tensor:
        return F.embedding(token_ids, self._table).to(self._dtype)


def rms_normalize(x: Tensor, eps: float) -> Tensor:
    """x / rms(x) over the last dimension, computed in fp32, returned in x's dtype (rounded before any weight).

    `torch.rms_norm` mixes dtypes in one multiplication, which is slow in bf16 for `[tokens, heads, head_dim]`
    (measured: 1.7 ms against 0.09 ms for `[256, 14, 64]`).
    """
    values = x.to(torch.float32, copy=True)
    norm = torch.linalg.vector_norm(values, dim=-1, keepdim=True)
    return values.mul_(norm.square_().mul_(1.0 / x.shape[-1]).add_(eps).rsqrt_()).to(x.dtype)


class RMSNorm:
    """Root-mean-square norm over the last dimension, times a weight (Zhang and Sennrich 2019)."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        self.weight = weight
        self._eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        return rms_normalize(x, self._eps).mul_(self.weight)


class GatedMLP:
    """down(activation(gate(x)) * up(x)); `gated` gives the product in the brackets."""

    def __init__(self, gated: Projection, down: Projection) -> None:
        self.gated = gated
        self.down = down
        self.num_bytes = gated.num_bytes + down.num_bytes

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return self.down(self.gated(x), residual)


class Rotary:
    """Rotary position embedding in the Hugging Face layout: component i is rotated with component i + head_dim / 2.

    The tables cover positions [0, `max_positions`) and are kept in `dtype`, computed in fp32.
    """

    def __init__(
        self, head_dim: int, theta: float, scaling: RopeScaling, max_positions: int, dtype: torch.dtype
    ) -> None:
        cos, sin = rotary_tables(head_dim, theta, scaling, max_positions)
        self._cos = torch.cat((cos, cos), dim=-1).to(dtype)
        # The sign of rotate_half lives in the table, so that rotating is a roll and one multiply-add.
        self._signed_sin = torch.cat((-sin, sin), dim=-1).to(dtype)
        self._half = head_dim // 2
        self.num_bytes = self._cos.nbytes + self._signed_sin.nbytes

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(cos, signed sin) for `positions` `[rows]`, each `[rows, 1, head_dim]`: looked up once a step."""
        return self._cos[positions].unsqueeze(1), self._signed_sin[positions].unsqueeze(1)

    def rotate(self, x: Tensor, tables: tuple[Tensor, Tensor], out: Tensor) -> None:
        """Rotate x `[rows, heads, head_dim]` into `out` of the same shape (not an alias of x)."""
        cos, signed_sin = tables
        torch.addcmul(x * cos, x.roll(self._half, dims=-1), signed_sin, out=out)


def rotary_tables(head_dim: int, theta: float, scaling: RopeScaling, max_positions: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of positions [0, `max_positions`), fp32 `[max_positions, head_dim / 2]` each.

    Raises ConfigError for positions that the kind of scaling cannot reach.
    """
    if scaling.rope_type == "dynamic" and max_positions > scaling.original_max_position_embeddings:
        raise ConfigError(
            f"dynamic rope scaling is not supported beyond {scaling.original_max_position_embeddings} positions; "
            f"use --max-model-len {scaling.original_max_position_embeddings} or less"
        )
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    frequencies = _scale_frequencies(1.0 / theta**exponent, scaling, theta, head_dim)
    angles = torch.outer(torch.arange(max_positions, dtype=torch.float32), frequencies)
    return angles.cos() * scaling.attention_factor, angles.sin() * scaling.attention_factor


def _scale_frequencies(frequencies: Tensor, scaling: RopeScaling, theta: float, head_dim: int) -> Tensor:
    if scaling.rope_type in ("default", "dynamic"):
        return frequencies
    if scaling.rope_type == "linear":
        return frequencies / scaling.factor
    if scaling.rope_type == "yarn":
        ramp = _yarn_ramp(scaling, theta, head_dim)
    else:
        wavelength = 2 * torch.pi / frequencies
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        ramp = ((scaling.original_max_position_embeddings / wavelength - low) / (high - low)).clamp(0.0, 1.0)
    return frequencies * ramp + frequencies / scaling.factor * (1.0 - ramp)


def _yarn_ramp(scaling: RopeScaling, theta: float, head_dim: int) -> Tensor:
    """For each pair of components, 1 where its frequency is kept and 0 where it is divided by the factor."""

    def component(turns: float) -> float:
        # The (fractional) component that turns that often within the original context.
        context = scaling.original_max_position_embeddings
        return head_dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = component(scaling.beta_fast), component(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    if first == last:
        last += 0.001
    components = torch.arange(head_dim // 2, dtype=torch.float32)
    return 1.0 - ((components - first) / (last - first)).clamp(0.0, 1.0)
