"""Chunks of a batch -> final hidden states: on the native kernels, or with torch where they are missing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from headrace.core.batch import Chunk
from headrace.engine.attention import paged
from headrace.engine.attention.native import NativeAttention
from headrace.engine.attention.span import Rules, Span
from headrace.engine.config import EngineConfig
from headrace.engine.kv_cache import KVCache
from headrace.engine.models.decoder import Decoder
from headrace.engine.models.layers import Rotary, padded_rows
from headrace.engine.models.native_decoder import NativeDecoder
from headrace.engine.models.rope import RopeScaling
from headrace.engine.step_inputs import InputBuilder


class Forward(Protocol):
    """One forward pass over a batch; writes keys and values of every chunk.

    num_bytes    weights and tables
    step_bytes   those of them that a step reads as a whole: not tables of which it takes rows
    """

    num_bytes: int
    step_bytes: int

    def run(self, chunks: tuple[Chunk, ...]) -> tuple[Tensor, list[int]]:
        """(hidden states of all rows, the row of each chunk's last position); the rows of a chunk follow each other."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """fp32 logits `[rows, vocab_size]` of hidden states `[rows, hidden_size]`."""
        ...

    def warm_up(self, rows: int) -> Tensor:
        """Compute so many rows that belong to nobody; returns one row of hidden states."""
        ...


class NativeForward:
    """fp32 hidden states, native attention and norms."""

    def __init__(self, decoder: Decoder, cache: KVCache, config: EngineConfig) -> None:
        shape = decoder.shape
        attention = NativeAttention(cache, shape.num_heads, shape.head_dim)
        self._decoder = NativeDecoder(decoder, attention, config.max_model_len)
        self._inputs = InputBuilder(config.max_num_seqs, config.max_model_len, config.block_size)
        self.num_bytes = decoder.num_bytes + self._decoder.num_bytes
        self.step_bytes = decoder.step_bytes

    def run(self, chunks: tuple[Chunk, ...]) -> tuple[Tensor, list[int]]:
        inputs = self._inputs.build(chunks)
        return self._decoder.forward(inputs), inputs.last_rows.tolist()

    def logits(self, hidden: Tensor) -> Tensor:
        return self._decoder.logits(hidden)

    def warm_up(self, rows: int) -> Tensor:
        return self._decoder.forward(self._inputs.nobody(rows))[:1]


@dataclass(frozen=True, slots=True)
class TorchInputs:
    """One step as flat tensors: decodes first, then prefill chunks, then padding.

    token_ids, positions  `[rows]`
    plans                 how to attend, by the layer's window
    write_rows            where the real rows' keys and values go (see KVCache.write_rows)
    last_rows             flat row of each chunk's last position, in the batch's order
    """

    token_ids: Tensor
    positions: Tensor
    write_rows: Tensor
    last_rows: list[int]
    plans: dict[int, paged.AttentionPlan]


class TorchForward:
    """Everything with torch, hidden states in the model's dtype: the twin of `NativeForward`."""

    def __init__(self, decoder: Decoder, cache: KVCache, config: EngineConfig) -> None:
        shape = decoder.shape
        self._decoder = decoder
        self._cache = cache
        # Layers differ by their windows at most: one plan for each of those.
        self._rules = {window: Rules(shape.query_scale, shape.softcap, window) for window in shape.windows}
        self._windows = shape.windows

        def rotary(theta: float, scaling: RopeScaling) -> Rotary:
            return Rotary(shape.head_dim, theta, scaling, config.max_model_len, decoder.activations)

        everywhere = rotary(shape.rope_theta, shape.rope_scaling)
        self._rotaries = everywhere, everywhere if shape.local_rope is None else rotary(*shape.local_rope)
        self.num_bytes = decoder.num_bytes + sum({id(each): each.num_bytes for each in self._rotaries}.values())
        self.step_bytes = decoder.step_bytes

    def run(self, chunks: tuple[Chunk, ...]) -> tuple[Tensor, list[int]]:
        inputs = self._inputs(chunks)
        hidden = self._decoder.forward(
            inputs.token_ids,
            inputs.positions,
            self._rotaries,
            self._cache,
            inputs.write_rows,
            partial(self._attend, inputs.plans),
        )
        return hidden, inputs.last_rows

    def logits(self, hidden: Tensor) -> Tensor:
        """Computed for a number of rows that has its kernel already."""
        rows = hidden.shape[0]
        return self._decoder.logits(F.pad(hidden, (0, 0, 0, padded_rows(rows) - rows)))[:rows]

    def warm_up(self, rows: int) -> Tensor:
        zeros = torch.zeros(padded_rows(rows), dtype=torch.int64)
        attend = partial(self._attend, self._plans([], [], len(zeros)))
        return self._decoder.forward(zeros, zeros, self._rotaries, self._cache, zeros[:0], attend)[:1]

    def _plans(self, decodes: list[Span], prefills: list[Span], rows: int) -> dict[int, paged.AttentionPlan]:
        cache, dtype = self._cache, self._decoder.activations
        return {
            window: paged.plan_attention(decodes, prefills, cache, rows, rules, dtype)
            for window, rules in self._rules.items()
        }

    def _attend(self, plans: dict[int, paged.AttentionPlan], queries: Tensor, layer: int) -> Tensor:
        plan = plans[self._windows[layer]]
        return paged.attend(queries, self._cache.layer(layer), plan, self._cache.scales(layer))

    def _inputs(self, chunks: tuple[Chunk, ...]) -> TorchInputs:
        """Lay the chunks out in rows."""
        singles = [index for index, chunk in enumerate(chunks) if chunk.length == 1]
        singles.sort(key=lambda index: -chunks[index].start)  # attention buckets them by context
        order = singles + [index for index, chunk in enumerate(chunks) if chunk.length > 1]
        block_size = self._cache.block_size
        token_ids: list[int] = []
        positions, slots, spans = [], [], []
        last_rows = [0] * len(chunks)
        for index in order:
            sequence, start, length = chunks[index][:3]
            end = start + length
            table = np.array(sequence.block_table[: -(-end // block_size)], dtype=np.int64)
            spans.append(Span(len(token_ids), start, length, table))
            token_ids += chunks[index].token_ids
            where = np.arange(start, end)
            positions.append(where)
            slots.append(table[where // block_size] * block_size + where % block_size)
            last_rows[index] = len(token_ids) - 1
        rows = padded_rows(len(token_ids))
        flat = np.zeros((2, rows), dtype=np.int64)
        flat[0, : len(token_ids)] = token_ids
        flat[1, : len(token_ids)] = np.concatenate(positions)
        return TorchInputs(
            token_ids=torch.from_numpy(flat[0]),
            positions=torch.from_numpy(flat[1]),
            write_rows=self._cache.write_rows(np.concatenate(slots)),
            last_rows=last_rows,
            plans=self._plans(spans[: len(singles)], spans[len(singles) :], rows),
        )
