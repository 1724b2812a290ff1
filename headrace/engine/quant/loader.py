"""A checkpoint's tensors -> the linear layers of a decoder, in whatever format they are stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol

import torch
from torch import Tensor

from headrace.engine.kernels.linear import NativeLinear, can_gate
from headrace.engine.models.layers import Embedding, Gated, Linear, Projection
from headrace.engine.quant.config import Quantization
from headrace.engine.quant.layout import EXPANDED, W4A8, Layout, kernel_group
from headrace.engine.quant.linears import Int4Linear, Int8Linear, has_int4_kernel, int8_rows
from headrace.engine.quant.unpack import GroupedWeights, grouped_weights, scaled_weight, stacked
from headrace.errors import ConfigError


class Source(Protocol):
    """Where tensors come from: `weights.Checkpoint` or `weights.RandomWeights`."""

    def take(self, name: str, *, keep: bool = True) -> Tensor:
        """In the model's dtype; with `keep` False valid only until the source is closed, and not to be written."""
        ...

    def take_stored(self, name: str) -> Tensor | None:
        """As stored; None where there is none of that name."""
        ...


@dataclass(frozen=True, slots=True)
class _Int8:
    weight: Tensor
    scales: Tensor


_Weights = Tensor | GroupedWeights | _Int8


class Concatenated:
    """Several projections of one input that cannot be one matrix, e.g. because only some are quantised."""

    def __init__(self, parts: Sequence[Projection]) -> None:
        self._parts = parts
        self.num_bytes = sum(part.num_bytes for part in parts)

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = torch.cat([part(x) for part in self._parts], dim=-1)
        return y if residual is None else residual + y


class TiedEmbedding:
    """A packed head that looks up rows as well: one copy for both.  Its bytes are counted with the head."""

    num_bytes = 0

    def __init__(self, head: NativeLinear) -> None:
        self._head = head

    def __call__(self, token_ids: Tensor) -> Tensor:
        return self._head.rows(token_ids)


class Loader:
    """Hands over a model's tensors and linear layers, one by one.

    int4 is W4A8, PACKED or EXPANDED (see `layout`): EXPANDED multiplies int4 weights out to `dtype`.
    to_int8 quantises linear layers and the head, a scale a row (not routers); then `scheme` is None.
    """

    def __init__(
        self,
        source: Source,
        layout: Layout,
        scheme: Quantization | None,
        dtype: torch.dtype,
        *,
        int4: str = W4A8,
        to_int8: bool = False,
        native: ModuleType | None = None,
    ) -> None:
        """`native`: the extension that computes, None: torch does."""
        self._source = source
        self._layout = layout
        self._scheme = scheme
        self._dtype = dtype
        self._is_native_int4 = int4 == W4A8 and native is not None
        self._keep_int4 = self._is_native_int4 or (int4 != EXPANDED and has_int4_kernel())
        self._to_int8 = to_int8
        self._native = native
        self.activations = dtype if native is None else torch.float32
        """What hidden states are kept in between the layers."""

    def take(self, name: str) -> Tensor:
        """A tensor that is never quantised, in the model's dtype."""
        return self._source.take(name)

    def vector(self, name: str) -> Tensor:
        """A norm's weight, in the dtype of the activations."""
        return self._source.take(name).to(self.activations)

    def embedding(self, name: str, *, tied: bool) -> tuple[Embedding | TiedEmbedding, Projection | None]:
        """(the embedding, the head made of the same numbers when they are tied)."""
        is_shared = tied and not self._to_int8 and self._native is not None
        table = self._source.take(name, keep=not is_shared)
        if not tied:
            return Embedding(table, self.activations), None
        if self._to_int8:
            return Embedding(table, self.activations), self._build([_Int8(*int8_rows(table))], None)
        if self._native is None:
            return Embedding(table, self.activations), Linear(table)  # packed, so a second copy
        head = NativeLinear(self._native, [table])
        return TiedEmbedding(head), head

    def gated(self, gate: str, up: str, activation: str) -> Projection:
        """activation(gate(x)) * up(x), "silu" or "gelu_tanh"."""
        parts = [self._weights(name) for name in (gate, up)]
        biases = [self._bias(name) for name in (gate, up)]
        has_kernel = self._is_native_int4 or not isinstance(parts[0], GroupedWeights)
        if (
            self._native is not None
            and has_kernel
            and activation == "silu"
            and _fit(parts)
            and can_gate([_matrix(part) for part in parts])
        ):
            return self._joined(parts, biases, gated=True)
        return Gated(self._joined(parts, biases), activation)

    def linear(self, *names: str) -> Projection:
        """One projection for the modules `names`, which share an input; their outputs follow each other."""
        return self._joined([self._weights(name) for name in names], [self._bias(name) for name in names])

    def _joined(self, parts: Sequence[_Weights], biases: Sequence[Tensor | None], *, gated: bool = False) -> Projection:
        if _fit(parts):
            merged = [bias for bias in biases if bias is not None]
            return self._build(parts, torch.cat(merged) if merged else None, gated=gated)
        return Concatenated([self._build([part], bias) for part, bias in zip(parts, biases, strict=True)])

    def _weights(self, name: str) -> _Weights:
        if name not in self._layout.quantized:
            weight = self._source.take(f"{name}.weight", keep=False)  # packed, joined or quantised: copied anyway
            quantize = self._to_int8 and not self._layout.modules[name].is_router
            return _Int8(*int8_rows(weight)) if quantize else weight
        module, scheme = self._layout.modules[name], self._scheme
        assert scheme is not None

        def stored(suffix: str) -> Tensor | None:
            return self._source.take_stored(f"{name}.{suffix}")

        if scheme.storage in ("int8", "fp8"):
            weight, scales = scaled_weight(module, scheme, stored)
            if scheme.has_int8_activations:
                return _Int8(weight, scales)
            return (weight.to(torch.float32) * scales).to(self._dtype)
        grouped = grouped_weights(module, scheme, stored)
        if isinstance(grouped, Tensor):
            return grouped.to(self._dtype)
        group = kernel_group(scheme, module, is_native=self._is_native_int4)
        if not self._keep_int4 or group is None:
            return grouped.dequantize().to(self._dtype)
        return grouped.regrouped(group)

    def _bias(self, name: str) -> Tensor | None:
        if self._layout.modules[name].has_bias:
            return self._source.take(f"{name}.bias")
        stray = self._source.take_stored(f"{name}.bias")
        if stray is not None and bool(stray.any()):
            raise ConfigError(f"tensor {name}.bias is not zero, but this architecture has no such bias")
        return None

    def _build(self, parts: Sequence[_Weights], bias: Tensor | None, *, gated: bool = False) -> Projection:
        first = parts[0]
        if isinstance(first, GroupedWeights):
            grouped = [part for part in parts if isinstance(part, GroupedWeights)]
            if self._is_native_int4 and self._native is not None:
                return NativeLinear(self._native, grouped, bias, gated=gated)
            return Int4Linear(stacked(grouped), bias, self.activations)
        if isinstance(first, _Int8):
            eights = [part for part in parts if isinstance(part, _Int8)]
            if self._native is not None:
                return NativeLinear(
                    self._native,
                    [part.weight for part in eights],
                    bias,
                    gated=gated,
                    scales=torch.cat([part.scales for part in eights]),
                )
            return Int8Linear(
                torch.cat([part.weight for part in eights]), torch.cat([part.scales for part in eights]), bias
            )
        plain = [part for part in parts if isinstance(part, Tensor)]
        if self._native is None:
            return Linear(torch.cat(plain), bias)
        return NativeLinear(self._native, plain, bias, gated=gated)


def _matrix(part: _Weights) -> Tensor:
    if isinstance(part, GroupedWeights):
        return part.values
    return part.weight if isinstance(part, _Int8) else part


def _fit(parts: Sequence[_Weights]) -> bool:
    """Whether the parts are rows of one matrix: one format, and inputs in one order."""
    first = parts[0]
    if any(type(part) is not type(first) for part in parts):
        return False
    if not isinstance(first, GroupedWeights):
        return True
    orders = [part.order for part in parts if isinstance(part, GroupedWeights)]
    return all(
        (order is None and first.order is None)
        or (order is not None and first.order is not None and torch.equal(order, first.order))
        for order in orders
    )
