"""The decoder on native kernels: hidden states in fp32, attention over paged caches, few calls a layer.

The twin of `decoder.Decoder.forward`, on the same weights.  A row's result depends on its own sequence alone.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from headrace.engine.attention.native import NativeAttention
from headrace.engine.attention.span import Rules
from headrace.engine.kernels import native
from headrace.engine.kernels.linear import NativeLinear
from headrace.engine.models.decoder import Decoder, DecoderLayer
from headrace.engine.models.layers import GatedMLP, Projection, RMSNorm, rotary_tables
from headrace.engine.models.shape import ModelShape
from headrace.engine.step_inputs import StepInputs


class NativeDecoder:
    """Runs the layers of `decoder` with `attention`.  Use from one thread at a time: the buffers are its own."""

    def __init__(self, decoder: Decoder, attention: NativeAttention, max_positions: int) -> None:
        module = native()
        assert module is not None
        self._native: ModuleType = module
        self._decoder = decoder
        self._attention = attention
        shape = decoder.shape
        self._eps = shape.rms_norm_eps
        tables = rotary_tables(shape.head_dim, shape.rope_theta, shape.rope_scaling, max_positions)
        local = tables if shape.local_rope is None else rotary_tables(shape.head_dim, *shape.local_rope, max_positions)
        self._tables = tables, local
        self._layers = [_Layer(layer, shape) for layer in decoder.layers]
        self._final_norm = decoder.norm.weight.float()
        self._program = self._in_one_call()
        self._widths = (shape.hidden_size, shape.num_heads * shape.head_dim)
        if self._program is not None:
            self._widths = (shape.hidden_size, self._program.space_for_row())
        self._buffers: tuple[Tensor, ...] = ()
        self._grow(1)

    @property
    def num_bytes(self) -> int:
        """Bytes held beside the decoder's weights: rotary tables and norms in fp32."""
        tables = {id(tensor): tensor for pair in self._tables for tensor in pair}
        return sum(tensor.nbytes for tensor in (*tables.values(), self._final_norm)) + sum(
            layer.num_bytes for layer in self._layers
        )

    def forward(self, inputs: StepInputs) -> Tensor:
        """Final hidden states fp32 `[rows, hidden_size]`, valid until the next call."""
        rows = len(inputs.token_ids)
        if rows > self._buffers[0].shape[0]:
            self._grow(rows)
        normed, attended = (buffer[:rows] for buffer in self._buffers)
        hidden = self._decoder.embed(torch.from_numpy(inputs.token_ids))
        if self._program is not None:
            self._program.run(
                *(hidden.data_ptr(), rows, self._buffers[1].data_ptr()),
                *(inputs.positions.ctypes.data, inputs.slots.ctypes.data, *inputs.spans),
            )
        else:
            hidden = self._layer_by_layer(hidden, inputs, normed, attended)
        self._norm(hidden, self._final_norm, normed)
        return normed

    def _layer_by_layer(self, hidden: Tensor, inputs: StepInputs, normed: Tensor, attended: Tensor) -> Tensor:
        """For layers with parts that torch computes, such as experts."""
        attention, eps = self._attention, self._eps
        for index, layer in enumerate(self._layers):
            self._norm(hidden, layer.input_norm, normed)
            qkv = layer.qkv(normed)
            attention.rotate_store(index, qkv, layer.qk_norms, eps, self._tables[layer.kind], inputs)
            attention.attend(index, qkv, layer.rules, inputs, attended)
            hidden = self._add(hidden, layer.output, attended, layer.attention_norm)
            self._norm(hidden, layer.mlp_norm, normed)
            hidden = self._add(hidden, layer.mlp, normed, layer.output_norm)
        return hidden

    def _in_one_call(self) -> Any:
        """All layers as one native object; None when a part of one is not native.

        At batch 1 a call for each operation costs a percent of a step and more (measured: docs/attention.md).
        """
        shape = self._decoder.shape
        program = self._native.Layers(shape.hidden_size, shape.num_heads, self._eps)
        for index, layer in enumerate(self._layers):
            matrices = layer.native_matrices()
            if matrices is None:
                return None
            norms = layer.input_norm, layer.attention_norm, layer.mlp_norm, layer.output_norm, *layer.qk_norms
            addresses = [0 if each is None else each.data_ptr() for each in (*norms, *self._tables[layer.kind])]
            rules = layer.rules
            program.add(
                *(*addresses, *(matrix.address for matrix in matrices)),
                *(rules.scale, rules.softcap, rules.window, *self._attention.place(index)),
            )
        return program

    def logits(self, hidden: Tensor) -> Tensor:
        """fp32 logits `[rows, vocab_size]`."""
        return self._decoder.logits(hidden)

    def _grow(self, rows: int) -> None:
        self._buffers = tuple(torch.empty(rows, width) for width in self._widths)

    def _norm(self, x: Tensor, weight: Tensor, out: Tensor, *, add: bool = False) -> None:
        self._native.norm(
            *(x.data_ptr(), x.stride(0), weight.data_ptr(), self._eps),
            *(out.data_ptr(), out.stride(0), *x.shape, add),
        )

    def _add(self, hidden: Tensor, projection: Projection, x: Tensor, weight: Tensor | None) -> Tensor:
        """hidden + projection(x), or its norm where there are weights."""
        if weight is None:
            return projection(x, hidden)
        self._norm(projection(x), weight, hidden, add=True)
        return hidden


class _Layer:
    """One layer's parts, norms in fp32."""

    def __init__(self, layer: DecoderLayer, shape: ModelShape) -> None:
        def fp32(norm: RMSNorm | None) -> Tensor | None:
            return None if norm is None else norm.weight.float()

        self.input_norm, self.mlp_norm = layer.input_norm.weight.float(), layer.mlp_norm.weight.float()
        self.attention_norm, self.output_norm = fp32(layer.attention_norm), fp32(layer.output_norm)
        self.qk_norms = tuple(
            None if weight is None else weight.float().contiguous() for weight in (layer.q_norm, layer.k_norm)
        )
        self.qkv, self.output, self.mlp = layer.qkv, layer.output, layer.mlp
        self.rules = Rules(shape.query_scale, shape.softcap, layer.window)
        self.kind = 1 if layer.window else 0

    def native_matrices(self) -> tuple[NativeLinear, NativeLinear, NativeLinear, NativeLinear] | None:
        """qkv, output, gate and up, down, where all are native and the gate is fused."""
        if not isinstance(self.mlp, GatedMLP):
            return None
        qkv, output, gated, down = self.qkv, self.output, self.mlp.gated, self.mlp.down
        if not (
            isinstance(qkv, NativeLinear)
            and isinstance(output, NativeLinear)
            and isinstance(gated, NativeLinear)
            and gated.is_gated
            and isinstance(down, NativeLinear)
        ):
            return None
        return qkv, output, gated, down

    @property
    def num_bytes(self) -> int:
        norms = self.input_norm, self.mlp_norm, self.attention_norm, self.output_norm, *self.qk_norms
        return sum(norm.nbytes for norm in norms if norm is not None)
