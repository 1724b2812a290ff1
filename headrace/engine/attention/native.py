"""Paged attention, rotation and the store of keys and values in native code (kernels/cpp/attention.hpp, fused.hpp).

Results are bit-identical whatever else is in the batch, however a prompt is cut into chunks, and for any number of
threads.
"""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from headrace.engine.attention.span import Rules
from headrace.engine.kernels import native
from headrace.engine.kv_cache import KVCache
from headrace.engine.step_inputs import StepInputs

GROUP = 16  # kv_lanes: block sizes and head sizes are multiples of it


def supports(block_size: int, head_dim: int) -> bool:
    """Whether the native kernels can take such pages here."""
    return native() is not None and block_size % GROUP == 0 and head_dim % GROUP == 0


class NativeAttention:
    """Writes to and attends over one cache of native layout.  Queries, keys and values are fp32 rows `[q, k, v]`."""

    def __init__(self, cache: KVCache, num_heads: int, head_dim: int) -> None:
        module = native()
        assert module is not None and cache.is_native
        self._native: ModuleType = module
        self._cache = cache
        self._heads = num_heads
        self._width = num_heads * head_dim
        self._places = [
            (
                cache.kind,
                cache.layer(layer).data_ptr(),
                0 if (scales := cache.scales(layer)) is None else scales.data_ptr(),
                cache.num_blocks + 1,
                cache.block_size,
                cache.num_heads,
                head_dim,
            )
            for layer in range(cache.num_layers)
        ]

    def place(self, layer: int) -> tuple[int, ...]:
        """Where a layer keeps its keys and values, as the native calls take it."""
        return self._places[layer]

    def rotate_store(
        self,
        layer: int,
        qkv: Tensor,
        norms: tuple[Tensor | None, Tensor | None],
        eps: float,
        tables: tuple[Tensor, Tensor],
        inputs: StepInputs,
    ) -> None:
        """Norm (where there are weights) and rotate queries and keys of `qkv` in place; keep keys and values.

        `tables` are cosine and sine, fp32 `[positions, head_dim / 2]`.
        """
        q_norm, k_norm = norms
        self._native.rotate_store(
            qkv.data_ptr(),
            qkv.stride(0),
            len(inputs.positions),
            self._heads,
            0 if q_norm is None else q_norm.data_ptr(),
            0 if k_norm is None else k_norm.data_ptr(),
            eps,
            tables[0].data_ptr(),
            tables[1].data_ptr(),
            inputs.positions.ctypes.data,
            inputs.slots.ctypes.data,
            *self._places[layer],
        )

    def attend(self, layer: int, qkv: Tensor, rules: Rules, inputs: StepInputs, out: Tensor) -> None:
        """softmax(scale * q K) V of every row into `out` fp32 `[rows, num_heads * head_dim]`."""
        self._native.attend(
            qkv.data_ptr(),
            qkv.stride(0),
            out.data_ptr(),
            out.stride(0),
            self._heads,
            *self._places[layer],
            *inputs.spans,
            rules.scale,
            rules.softcap,
            rules.window,
        )
