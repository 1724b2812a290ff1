"""Keys and values land where the block table says, and failures do not outlive their owner."""

from __future__ import annotations

import numpy as np
import torch

from headrace.engine.kv_cache import KVCache
from headrace.engine.models.shape import model_shape

SHAPE = model_shape(
    {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 8,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "head_dim": 4,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6,
    }
)


def test_vectors_are_written_to_their_slots_and_nowhere_else() -> None:
    cache = KVCache(SHAPE, num_blocks=3, block_size=4, dtype=torch.float32)
    vectors = torch.randn(3, 4, 4)  # 2 tokens and a row of padding; 2 key heads, then 2 value heads
    cache.write(1, vectors, cache.write_rows(np.array([1, 10])))
    pages = cache.layer(1)
    assert torch.equal(pages[:, 0, 1], vectors[0])  # slot 1: block 0, offset 1
    assert torch.equal(pages[:, 2, 2], vectors[1])  # slot 10: block 2, offset 2
    assert int((pages != 0).sum()) == 2 * 4 * 4
    assert not cache.layer(0).any()


def test_size_counts_both_keys_and_values_and_the_null_block() -> None:
    cache = KVCache(SHAPE, num_blocks=3, block_size=4, dtype=torch.bfloat16)
    assert cache.num_bytes == SHAPE.kv_values_per_token * 2 * (3 + 1) * 4


def test_scrub_removes_what_is_not_finite_and_keeps_the_rest() -> None:
    cache = KVCache(SHAPE, num_blocks=3, block_size=4, dtype=torch.float32)
    cache.layer(0)[0, 1, 0] = torch.tensor([torch.nan, 1.0, torch.inf, -torch.inf])
    cache.layer(0)[0, 2, 0] = torch.nan  # another sequence's block
    cache.scrub([1])
    assert cache.layer(0)[0, 1, 0].tolist() == [0.0, 1.0, 0.0, 0.0]
    assert cache.layer(0)[0, 2, 0].isnan().all()
