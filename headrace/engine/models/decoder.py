"""One decoder for all supported families: they differ in biases, in the norm of queries and keys, and in experts.

`forward` receives all that it uses as arguments: no global context, no state between steps except the KV cache that
the caller hands in.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from headrace.engine.kv_cache import KVCache
from headrace.engine.models.experts import MixtureOfExperts
from headrace.engine.models.layers import GatedMLP, RMSNorm, Rotary, rms_normalize
from headrace.engine.models.shape import ModelShape
from headrace.engine.quant.loader import Loader

# Given (queries [rows, num_heads, head_dim], a layer), returns [rows, num_heads * head_dim].
Attend = Callable[[Tensor, int], Tensor]


class DecoderLayer:
    """Attention and an MLP or experts, each behind a norm and added to the residual stream."""

    def __init__(self, shape: ModelShape, index: int, loader: Loader) -> None:
        self._num_heads = shape.num_heads
        self._num_rotated = shape.num_heads + shape.num_kv_heads
        self._head_dim = shape.head_dim
        self._eps = shape.rms_norm_eps
        self.window = shape.windows[index]

        prefix = f"model.layers.{index}."

        def weight(name: str) -> Tensor:
            return norm_weight(loader, shape, f"{prefix}{name}.weight")

        def norm(name: str) -> RMSNorm:
            return RMSNorm(weight(name), shape.rms_norm_eps)

        self.input_norm = norm("input_layernorm")
        self.qkv = loader.linear(*(f"{prefix}self_attn.{name}_proj" for name in "qkv"))
        self.q_norm: Tensor | None = None
        self.k_norm: Tensor | None = None
        self._qk_norm: Tensor | None = None
        if shape.qk_norm:
            self.q_norm, self.k_norm = weight("self_attn.q_norm"), weight("self_attn.k_norm")
            # One weight row per head, queries before keys: both norms become one operation.
            heads = shape.num_heads, shape.num_kv_heads
            self._qk_norm = torch.cat((self.q_norm.expand(heads[0], -1), self.k_norm.expand(heads[1], -1)))
        self.output = loader.linear(f"{prefix}self_attn.o_proj")
        # The norms behind attention and MLP, and the one before the MLP: families disagree about their names.
        self.attention_norm = norm("post_attention_layernorm") if shape.post_norms else None
        self.mlp_norm = norm("pre_feedforward_layernorm" if shape.post_norms else "post_attention_layernorm")
        self.output_norm = norm("post_feedforward_layernorm") if shape.post_norms else None
        self.mlp = _mlp(shape, index, prefix, loader)
        self.num_bytes = self.qkv.num_bytes + self.output.num_bytes + self.mlp.num_bytes

    def forward(
        self,
        hidden: Tensor,
        rotary: Rotary,
        tables: tuple[Tensor, Tensor],
        cache: KVCache,
        layer: int,
        write_rows: Tensor,
        attend: Attend,
    ) -> Tensor:
        heads = self.qkv(self.input_norm(hidden)).view(hidden.shape[0], -1, self._head_dim)
        rotated = heads[:, : self._num_rotated]  # queries, then keys; the values behind them are not rotated
        normed = rotated.clone() if self._qk_norm is None else rms_normalize(rotated, self._eps).mul_(self._qk_norm)
        rotary.rotate(normed, tables, out=rotated)
        # Every row of the step is written before any row reads: a sequence may share a block that another
        # sequence of the same step fills (prefix-cache hits are planned, not finished).
        cache.write(layer, heads[:, self._num_heads :], write_rows)
        attended = attend(heads[:, : self._num_heads], layer)
        if self.attention_norm is None:
            hidden = self.output(attended, hidden)
        else:
            hidden = hidden + self.attention_norm(self.output(attended))
        if self.output_norm is None:
            return self.mlp(self.mlp_norm(hidden), hidden)
        return hidden + self.output_norm(self.mlp(self.mlp_norm(hidden)))


def norm_weight(loader: Loader, shape: ModelShape, name: str) -> Tensor:
    """A norm's weights as they multiply; in fp32 where the file has their difference from 1, which bf16 would round."""
    weight = loader.vector(name)
    return weight if not shape.norm_offset else weight.float() + shape.norm_offset


def _mlp(shape: ModelShape, index: int, prefix: str, loader: Loader) -> GatedMLP | MixtureOfExperts:
    def gated(gate: str, up: str, down: str) -> GatedMLP:
        return GatedMLP(loader.gated(prefix + gate, prefix + up, shape.activation), loader.linear(prefix + down))

    experts = shape.experts_of(index)
    if experts is None:
        return gated("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    names = experts.names
    return MixtureOfExperts(
        experts,
        loader.linear(prefix + names.router),
        [gated(names.gate.format(n), names.up.format(n), names.down.format(n)) for n in range(experts.count)],
    )


class Decoder:
    """Embedding, decoder layers, final norm and head.  Weights come through `loader`, layer by layer."""

    def __init__(self, shape: ModelShape, loader: Loader) -> None:
        self.shape = shape
        self.activations = loader.activations
        self._embedding, tied_head = loader.embedding("model.embed_tokens.weight", tied=shape.tie_word_embeddings)
        self.layers = [DecoderLayer(shape, index, loader) for index in range(shape.num_layers)]
        self.norm = RMSNorm(norm_weight(loader, shape, "model.norm.weight"), shape.rms_norm_eps)
        self.head = tied_head or loader.linear("lm_head")
        layers = sum(layer.num_bytes for layer in self.layers)
        self.step_bytes = layers + self.head.num_bytes  # a tied head is the table too, and read as a whole
        self.num_bytes = self._embedding.num_bytes + self.step_bytes

    def embed(self, token_ids: Tensor) -> Tensor:
        """Rows of the embedding `[rows, hidden_size]`, scaled where the family does that."""
        rows = self._embedding(token_ids)
        return rows if self.shape.embedding_scale == 1.0 else rows.mul_(self.shape.embedding_scale)

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        rotaries: tuple[Rotary, Rotary],
        cache: KVCache,
        write_rows: Tensor,
        attend: Attend,
    ) -> Tensor:
        """Final hidden states `[rows, hidden_size]` for `token_ids` and `positions` `[rows]`.

        `rotaries` are that of layers that see everything and that of layers with a window.
        `write_rows` (from `KVCache.write_rows`) says where the first rows' keys and values go; rows behind them are
        padding: computed, never written, never read.
        """
        hidden = self.embed(token_ids)
        tables = tuple(rotary.at(positions) for rotary in rotaries)
        for index, layer in enumerate(self.layers):
            kind = 1 if layer.window else 0
            hidden = layer.forward(hidden, rotaries[kind], tables[kind], cache, index, write_rows, attend)
        return self.norm(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """fp32 logits `[rows, vocab_size]`."""
        return self.cap(self.head(hidden).float())

    def cap(self, logits: Tensor) -> Tensor:
        """Soft-capped in place, where the family does that."""
        cap = self.shape.final_softcap
        return logits.div_(cap).tanh_().mul_(cap) if cap else logits
