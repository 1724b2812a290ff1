"""The fast attention equals the slow, obvious one on mixed batches."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from headrace.engine.attention import paged, reference
from headrace.engine.attention.span import Rules, Span
from headrace.engine.kv_cache import KVCache
from headrace.engine.models.shape import ModelShape, model_shape


def shape(heads: int, kv_heads: int, head_dim: int) -> ModelShape:
    return model_shape(
        {
            "architectures": ["Qwen3ForCausalLM"],
            "vocab_size": 8,
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": head_dim,
            "max_position_embeddings": 1024,
            "rms_norm_eps": 1e-6,
        }
    )


class World:
    """A cache full of random keys and values, block tables in random order, NaN-free."""

    def __init__(
        self, heads: int, kv_heads: int, head_dim: int, block_size: int, dtype: torch.dtype, rules: Rules | None = None
    ) -> None:
        torch.manual_seed(0)
        self.rng = random.Random(0)
        self.rules = rules or Rules(head_dim**-0.5)
        self.heads, self.head_dim, self.block_size = heads, head_dim, block_size
        self.cache = KVCache(shape(heads, kv_heads, head_dim), 4000 // block_size, block_size, dtype)
        pages = self.cache.layer(0)
        pages[:, : self.cache.num_blocks] = torch.randn(pages[:, : self.cache.num_blocks].shape).to(dtype)
        self.free = list(range(self.cache.num_blocks))
        self.rng.shuffle(self.free)

    def spans(self, chunks: list[tuple[int, int]]) -> list[Span]:
        """(start, length) of each chunk, rows in that order, blocks of their own."""
        spans, row = [], 0
        for start, length in chunks:
            count = -(-(start + length) // self.block_size)
            table = np.array([self.free.pop() for _ in range(count)], dtype=np.int64)
            spans.append(Span(row, start, length, table))
            row += length
        return spans

    def both(self, chunks: list[tuple[int, int]], padding: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        spans = self.spans(chunks)
        rows = spans[-1].row + spans[-1].length + padding
        queries = torch.randn(rows, self.heads, self.head_dim).to(self.cache.dtype)
        singles = [span for span in spans if span.length == 1]
        plan = paged.plan_attention(singles, spans[len(singles) :], self.cache, rows, self.rules, self.cache.dtype)
        pages = self.cache.layer(0)
        return paged.attend(queries, pages, plan), reference.attend(queries, pages, spans, self.rules)


MIXED = [(300, 1), (299, 1), (90, 1), (31, 1), (7, 1), (5, 1), (0, 1), (0, 1), (0, 2), (0, 64), (64, 70), (3, 9)]
"""Decodes in order of falling context, then chunks: without a past, behind a cached prefix, longer than a tile."""


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(6, 2, 16), (4, 4, 32), (7, 1, 24)])
@pytest.mark.parametrize("block_size", [1, 16, 48])
def test_mixed_batch_equals_reference(heads: int, kv_heads: int, head_dim: int, block_size: int) -> None:
    fast, slow = World(heads, kv_heads, head_dim, block_size, torch.float32).both(MIXED, padding=3)
    assert torch.allclose(fast, slow, atol=2e-6, rtol=1e-5)
    assert not fast[-3:].any(), "padding rows stay zero"


def test_bf16_is_as_close_as_its_mantissa_allows() -> None:
    fast, slow = World(6, 2, 64, 16, torch.bfloat16).both(MIXED)
    assert (fast.float() - slow.float()).abs().max() < 0.03


@pytest.mark.parametrize("rules", [Rules(0.3, softcap=2.0), Rules(0.25, window=20), Rules(0.3, softcap=3.0, window=80)])
def test_soft_capping_and_windows_equal_reference(rules: Rules) -> None:
    fast, slow = World(6, 2, 16, 16, torch.float32, rules).both(MIXED)
    assert torch.allclose(fast, slow, atol=2e-6, rtol=1e-5)


def test_decodes_of_very_different_lengths_are_not_padded_to_the_longest() -> None:
    world = World(4, 2, 16, 16, torch.float32)
    spans = world.spans([(900, 1), (880, 1), (860, 1), (850, 1), (20, 1), (19, 1), (4, 1)])
    plan = paged.plan_attention(spans, [], world.cache, 7, Rules(0.25), torch.float32)
    assert [(bucket.first, bucket.last) for bucket in plan.decodes] == [(0, 4), (4, 7)]
    assert plan.decodes[1].context < 100


def test_a_planted_off_by_one_in_the_mask_is_seen() -> None:
    """The comparison above can fail: hide one more position, and it does."""
    world = World(4, 2, 16, 16, torch.float32)
    spans = world.spans([(40, 1)])
    plan = paged.plan_attention(spans, [], world.cache, 1, Rules(0.25), torch.float32)
    plan.decodes[0].mask[..., 40] = -torch.inf
    queries = torch.randn(1, 4, 16)
    slow = reference.attend(queries, world.cache.layer(0), spans, Rules(0.25))
    assert not torch.allclose(paged.attend(queries, world.cache.layer(0), plan), slow, atol=1e-4)
