"""The paged KV cache: one tensor of pages a layer, addressed by the scheduler's block ids."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from headrace.engine import pages
from headrace.engine.models.shape import ModelShape

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
KV_DTYPES = DTYPES | {"int8": torch.int8}
_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}


class KVCache:
    """Keys and values, per layer `[2 * num_kv_heads, num_blocks + 1, block_size, head_dim]`, keys' heads first.

    Head before block, because attention wants each head's positions next to each other: gathering pages in this
    order yields `[heads, positions, head_dim]` without a transposing copy (measured: 1.6 ms against 4.0 ms for the
    decode attention of 64 sequences of 512 tokens, 2 cores).  With `is_native` a page of keys is
    `[head_dim, block_size]` instead, which is what vectors of positions load; only the native kernels write there.

    int8: value * scale of its position and head, the largest magnitude / 127; `scales` has them, per layer
    `[2 * num_kv_heads, num_blocks + 1, block_size]`.

    The block after the last, `null_block`, belongs to no sequence and stays zero: block tables are padded with it.
    Everything starts as zeros, because masked positions are still multiplied (by an exact 0): they must be finite.
    """

    def __init__(
        self, shape: ModelShape, num_blocks: int, block_size: int, dtype: torch.dtype, *, is_native: bool = False
    ) -> None:
        self.block_size = block_size
        self.num_blocks = num_blocks
        self.null_block = num_blocks
        self.num_heads = shape.num_kv_heads
        self.num_layers = shape.num_layers
        self.is_native = is_native
        self.kind = _KINDS[dtype]
        self._heads = 2 * shape.num_kv_heads
        size = (shape.num_layers, self._heads, num_blocks + 1, block_size, shape.head_dim)
        self._data = _zeros(size, dtype)
        self._layers = list(self._data)
        self._rows = [layer.view(-1, shape.head_dim) for layer in self._layers]
        self._scales = _zeros(size[:-1], torch.float32) if dtype == torch.int8 else None

    @property
    def num_bytes(self) -> int:
        return self._data.nbytes + (0 if self._scales is None else self._scales.nbytes)

    @property
    def dtype(self) -> torch.dtype:
        return self._data.dtype

    def layer(self, index: int) -> Tensor:
        """One layer's pages, `[2 * num_kv_heads, num_blocks + 1, block_size, head_dim]`."""
        return self._layers[index]

    def scales(self, layer: int) -> Tensor | None:
        """One layer's scales, `[2 * num_kv_heads, num_blocks + 1, block_size]`; None but for int8."""
        return None if self._scales is None else self._scales[layer]

    def write_rows(self, slots: np.ndarray) -> Tensor:
        """Where the tokens in `slots` (block id * block_size + offset, `[tokens]`) keep their 2 * num_kv_heads vectors.

        Computed once a step, used by every layer: `[tokens * 2 * num_kv_heads]`.
        """
        slots_per_head = (self.num_blocks + 1) * self.block_size
        heads = np.arange(self._heads, dtype=np.int64) * slots_per_head
        return torch.from_numpy((slots[:, None] + heads[None, :]).reshape(-1))

    def write(self, layer: int, vectors: Tensor, rows: Tensor) -> None:
        """Store keys and values `[tokens or more, 2 * num_kv_heads, head_dim]`, as many tokens as `rows` names."""
        assert not self.is_native
        count = rows.shape[0] // self._heads
        vectors = vectors[:count].reshape(rows.shape[0], vectors.shape[-1])
        if self._scales is not None:
            vectors, scales = quantize(vectors)
            self._scales[layer].view(-1).index_put_((rows,), scales)
        self._rows[layer].index_put_((rows,), vectors.to(self.dtype))

    def scrub(self, block_ids: Sequence[int]) -> None:
        """Replace NaN and Inf by 0 in these blocks.

        A later owner of a block multiplies its stale tail by 0, and 0 * NaN would spread one request's failure to
        another.  Finite values stay, so blocks shared with healthy sequences are not harmed.
        """
        if block_ids:
            blocks = torch.tensor(list(block_ids))
            for data in (self._data, self._scales):
                if data is not None and data.is_floating_point():
                    data[:, :, blocks] = data[:, :, blocks].nan_to_num_(0.0, 0.0, 0.0)


def quantize(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """(int8 `[rows, head_dim]`, fp32 scales `[rows]`): each row's largest magnitude becomes 127.

    A row with a number that is not finite gets the scale NaN: its failure must be seen, and int8 cannot show it.
    """
    values = vectors.float()
    scales = values.abs().amax(dim=-1) / 127.0
    finite = torch.isfinite(values).all(dim=-1)
    factors = torch.where((scales > 0) & finite, 1.0 / scales, 0.0)
    scaled = values.nan_to_num(0.0, 0.0, 0.0) * factors.unsqueeze(-1)
    rounded = torch.trunc(scaled + torch.where(scaled < 0, -0.5, 0.5))
    return rounded.to(torch.int8), torch.where(finite, scales, torch.nan)


def _zeros(size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    # Not torch.zeros: it writes them all (2 s for 2 GiB).
    return pages.zeros(math.prod(size) * dtype.itemsize).view(dtype).view(size)
