"""One decoder for Llama, Mistral, Qwen2 and Qwen3: they differ in biases and in the norm of queries and keys only.

`forward` receives all that it uses as arguments: no global context, no state between steps except the KV cache that
the caller hands in.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from headrace.engine.kv_cache import KVCache
from headrace.engine.models.layers import GatedMLP, Linear, RMSNorm, Rotary, rms_normalize
from headrace.engine.models.shape import ModelShape

# Given (queries [rows, num_heads, head_dim], one layer's cache), returns [rows, num_heads * head_dim].
Attend = Callable[[Tensor, Tensor], Tensor]
# Hands over the tensor of that checkpoint name, in the model's dtype and with the shape of `expected_tensors`.
Take = Callable[[str], Tensor]


class DecoderLayer:
    """Attention and MLP, each behind a norm and added to the residual stream."""

    def __init__(self, shape: ModelShape, index: int, take: Take) -> None:
        self._num_heads = shape.num_heads
        self._num_rotated = shape.num_heads + shape.num_kv_heads
        self._head_dim = shape.head_dim
        self._eps = shape.rms_norm_eps

        def norm(name: str) -> RMSNorm:
            return RMSNorm(take(f"model.layers.{index}.{name}.weight"), shape.rms_norm_eps)

        def linear(*names: str, has_bias: bool) -> Linear:
            weights = [take(f"model.layers.{index}.{name}.weight") for name in names]
            biases = [take(f"model.layers.{index}.{name}.bias") for name in names] if has_bias else []
            return Linear(torch.cat(weights), torch.cat(biases) if biases else None)

        self._input_norm = norm("input_layernorm")
        self._qkv = linear("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", has_bias=shape.qkv_bias)
        self._qk_norm: Tensor | None = None
        if shape.qk_norm:
            # One weight row per head, queries before keys: both norms become one operation.
            q_norm = take(f"model.layers.{index}.self_attn.q_norm.weight").expand(shape.num_heads, -1)
            k_norm = take(f"model.layers.{index}.self_attn.k_norm.weight").expand(shape.num_kv_heads, -1)
            self._qk_norm = torch.cat((q_norm, k_norm))
        self._output = linear("self_attn.o_proj", has_bias=shape.output_bias)
        self._post_norm = norm("post_attention_layernorm")
        gate_up = linear("mlp.gate_proj", "mlp.up_proj", has_bias=shape.mlp_bias)
        down = linear("mlp.down_proj", has_bias=shape.mlp_bias)
        self._mlp = GatedMLP(gate_up, down)
        self.num_bytes = self._qkv.num_bytes + self._output.num_bytes + gate_up.num_bytes + down.num_bytes

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
        hidden = hidden + self._output(attend(heads[:, : self._num_heads], cache.layer(layer)))
        return hidden + self._mlp(self._post_norm(hidden))


class Decoder:
    """Embedding, decoder layers, final norm and head.  Weights come through `take`, layer by layer."""

    def __init__(self, shape: ModelShape, take: Take, max_positions: int, dtype: torch.dtype) -> None:
        self.shape = shape
        self._embedding = take("model.embed_tokens.weight")
        self._layers = [DecoderLayer(shape, index, take) for index in range(shape.num_layers)]
        self._norm = RMSNorm(take("model.norm.weight"), shape.rms_norm_eps)
        self._head = Linear(self._embedding if shape.tie_word_embeddings else take("lm_head.weight"))
        self._rotary = Rotary(shape.head_dim, shape.rope_theta, shape.rope_scaling, max_positions, dtype)
        # A tied head is packed, so it holds a second copy of the embedding.
        layers = sum(layer.num_bytes for layer in self._layers)
        self.num_bytes = self._embedding.nbytes + layers + self._head.num_bytes + self._rotary.num_bytes

    def forward(
        self, token_ids: Tensor, positions: Tensor, cache: KVCache, write_rows: Tensor, attend: Attend
    ) -> Tensor:
        """Final hidden states `[rows, hidden_size]` for `token_ids` and `positions` `[rows]`.

        `write_rows` (from `KVCache.write_rows`) says where the first rows' keys and values go; rows behind them are
        padding: computed, never written, never read.
        """
        hidden = F.embedding(token_ids, self._embedding)
        tables = self._rotary.at(positions)
        for index, layer in enumerate(self._layers):
            hidden = layer.forward(hidden, self._rotary, tables, cache, index, write_rows, attend)
        return self._norm(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """fp32 logits `[rows, vocab_size]`."""
        return self._head(hidden).float()


def expected_tensors(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Name (Hugging Face's) and shape of every tensor that a checkpoint of this model must hold."""
    hidden, inner, head_dim = shape.hidden_size, shape.intermediate_size, shape.head_dim
    q_size, kv_size = shape.num_heads * head_dim, shape.num_kv_heads * head_dim
    # (name, rows, columns, has a bias)
    linears = (
        ("self_attn.q_proj", q_size, hidden, shape.qkv_bias),
        ("self_attn.k_proj", kv_size, hidden, shape.qkv_bias),
        ("self_attn.v_proj", kv_size, hidden, shape.qkv_bias),
        ("self_attn.o_proj", hidden, q_size, shape.output_bias),
        ("mlp.gate_proj", inner, hidden, shape.mlp_bias),
        ("mlp.up_proj", inner, hidden, shape.mlp_bias),
        ("mlp.down_proj", hidden, inner, shape.mlp_bias),
    )
    norms = {"input_layernorm": hidden, "post_attention_layernorm": hidden}
    if shape.qk_norm:
        norms |= {"self_attn.q_norm": head_dim, "self_attn.k_norm": head_dim}

    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocab_size, hidden)}
    for index in range(shape.num_layers):
        prefix = f"model.layers.{index}."
        for name, rows, columns, has_bias in linears:
            tensors[f"{prefix}{name}.weight"] = (rows, columns)
            if has_bias:
                tensors[f"{prefix}{name}.bias"] = (rows,)
        for name, size in norms.items():
            tensors[f"{prefix}{name}.weight"] = (size,)
    tensors["model.norm.weight"] = (hidden,)
    if not shape.tie_word_embeddings:
        tensors["lm_head.weight"] = (shape.vocab_size, hidden)
    return tensors
