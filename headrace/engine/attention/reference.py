"""Paged attention, plain and slow: one query position of one sequence at a time, in fp32.

The truth that `paged` is tested against; nothing else uses it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from headrace.engine.attention.span import Rules, Span


def attend(
    queries: Tensor,
    pages: Tensor,
    spans: Sequence[Span],
    rules: Rules,
    scales: Tensor | None = None,
) -> Tensor:
    """softmax(scale * q · K) V over each query's own past.

    queries `[rows, num_heads, head_dim]`; pages `[2 * num_kv_heads, blocks, block_size, head_dim]` (keys' heads
    first), for int8 with `scales` `[2 * num_kv_heads, blocks, block_size]`; returns `[rows, num_heads * head_dim]` in
    the queries' dtype, zero for rows of no span.
    """
    rows, num_heads, head_dim = queries.shape
    num_kv_heads, block_size = pages.shape[0] // 2, pages.shape[2]
    group = num_heads // num_kv_heads
    out = torch.zeros(rows, num_heads, head_dim, dtype=queries.dtype)
    for span in spans:
        for offset in range(span.length):
            end = span.start + offset + 1
            positions = range(max(0, end - rules.window) if rules.window else 0, end)
            places = [(int(span.block_table[p // block_size]), p % block_size) for p in positions]
            past = torch.stack([pages[:, block, slot] for block, slot in places], dim=1).float()
            if scales is not None:
                past *= torch.stack([scales[:, block, slot] for block, slot in places], dim=1).unsqueeze(-1)
            for head in range(num_heads):
                query = queries[span.row + offset, head].float()
                keys, values = past[head // group], past[num_kv_heads + head // group]
                scores = keys @ query * rules.scale
                if rules.softcap:
                    scores = rules.softcap * torch.tanh(scores / rules.softcap)
                weights = torch.softmax(scores, dim=0)
                out[span.row + offset, head] = (weights @ values).to(queries.dtype)
    return out.view(rows, num_heads * head_dim)
