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

# Given (queries [rows, num_heads, head_dim], one layer's cache), returns [rows, num_heads * head_dim].
Attend = Callable[[Tensor, Tensor], Tensor]


class DecoderLayer:
    """Attention and an MLP or experts, each behind a norm and added to the residual stream."""

    def __init__(self, shape: ModelShape, index: int, loader: Loader) -> None:
        self._num_heads = shape.num_heads
        self._num_rotated = shape.num_heads + shape.num_kv_heads
        self._head_dim = shape.head_dim
        self._eps = shape.rms_norm_eps

        prefix = f"model.layers.{index}."

        def norm(name: str) -> RMSNorm:
            return RMSNorm(loader.vector(f"{prefix}{name}.weight"), shape.rms_norm_eps)

        self._input_norm = norm("input_layernorm")
        self._qkv = loader.linear(*(f"{prefix}self_attn.{name}_proj" for name in "qkv"))
        self._qk_norm: Tensor | None = None
        if shape.qk_norm:
            # One weight row per head, queries before keys: both norms become one operation.
            q_norm = loader.vector(f"{prefix}self_attn.q_norm.weight").expand(shape.num_heads, -1)
            k_norm = loader.vector(f"{prefix}self_attn.k_norm.weight").expand(shape.num_kv_heads, -1)
            self._qk_norm = torch.cat((q_norm, k_norm))
        self._output = loader.linear(f"{prefix}self_attn.o_proj")
        self._post_norm = norm("post_attention_layernorm")
        self._mlp = _mlp(shape, index, prefix, loader)
        self.num_bytes = self._qkv.num_bytes + self._output.num_bytes + self._mlp.num_bytes

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
        heads = self._qkv(self._input_norm(hidden)).view(hidden.shape[0], -1, self._head_dim)
        rotated = heads[:, : self._num_rotated]  # queries, then keys; the values behind them are not rotated
        normed = rotated.clone() if self._qk_norm is None else rms_normalize(rotated, self._eps).mul_(self._qk_norm)
        rotary.rotate(normed, tables, out=rotated)
        # Every row of the step is written before any row reads: a sequence may share a block that another
        # sequence of the same step fills (prefix-cache hits are planned, not finished).
        cache.write(layer, heads[:, self._num_heads :], write_rows)
        hidden = self._output(attend(heads[:, : self._num_heads], cache.layer(layer)), hidden)
        return self._mlp(self._post_norm(hidden), hidden)


def _mlp(shape: ModelShape, index: int, prefix: str, loader: Loader) -> GatedMLP | MixtureOfExperts:
    def gated(gate: str, up: str, down: str) -> GatedMLP:
        return GatedMLP(loader.gated(prefix + gate, prefix + up), loader.linear(prefix + down))

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

    def __init__(self, shape: ModelShape, loader: Loader, max_positions: int) -> None:
        self.shape = shape
        self._embedding, tied_head = loader.embedding("model.embed_tokens.weight", tied=shape.tie_word_embeddings)
        self._layers = [DecoderLayer(shape, index, loader) for index in range(shape.num_layers)]
        self._norm = RMSNorm(loader.vector("model.norm.weight"), shape.rms_norm_eps)
        self._head = tied_head or loader.linear("lm_head")
        self._rotary = Rotary(shape.head_dim, shape.rope_theta, shape.rope_scaling, max_positions, loader.activations)
        layers = sum(layer.num_bytes for layer in self._layers)
        self.num_bytes = self._embedding.num_bytes + layers + self._head.num_bytes + self._rotary.num_bytes

    def forward(
        self, token_ids: Tensor, positions: Tensor, cache: KVCache, write_rows: Tensor, attend: Attend
    ) -> Tensor:
        """Final hidden states `[rows, hidden_size]` for `token_ids` and `positions` `[rows]`.

        `write_rows` (from `KVCache.write_rows`) says where the first rows' keys and values go; rows behind them are
        padding: computed, never written, never read.
        """
        hidden = self._embedding(token_ids)
        tables = self._rotary.at(positions)
        for index, layer in enumerate(self._layers):
            hidden = layer.forward(hidden, self._rotary, tables, cache, index, write_rows, attend)
        return self._norm(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """fp32 logits `[rows, vocab_size]`."""
        return self._head(hidden).float()
