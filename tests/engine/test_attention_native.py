"""Native attention equals the slow, obvious one, and not one bit of a row depends on what is computed beside it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from test_attention_paged import shape

from headrace.core.batch import Chunk
from headrace.core.request import Request
from headrace.core.sequence import Phase
from headrace.core.sequence import Sequence as Running
from headrace.engine.attention import reference
from headrace.engine.attention.native import NativeAttention
from headrace.engine.attention.span import Rules, Span
from headrace.engine.kernels import native
from headrace.engine.kv_cache import KVCache, quantize
from headrace.engine.step_inputs import InputBuilder, StepInputs

pytestmark = pytest.mark.skipif(native() is None, reason="the native kernels are not built")

MIXED = [(1300, 1), (299, 1), (31, 1), (0, 1), (0, 2), (0, 64), (64, 70), (3, 9), (600, 30)]
"""(start, length): decodes, whole prompts, chunks behind a prefix; contexts beyond one split of 512."""
SHAPES = [(14, 2, 64, 16), (6, 2, 16, 48), (4, 4, 128, 16), (7, 1, 96, 32), (4, 2, 256, 16)]
RULES = [Rules(0.2), Rules(0.3, softcap=2.0), Rules(0.2, window=40), Rules(0.3, softcap=5.0, window=700)]


@pytest.fixture(autouse=True)
def one_thread_afterwards() -> Iterator[None]:
    yield
    native().set_num_threads(1)  # type: ignore[union-attr]


class World:
    """Sequences with random keys and values, in a native cache and in a plain one for the reference."""

    def __init__(self, heads: int, kv_heads: int, head_dim: int, block_size: int, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        self.heads, self.kv_heads, self.head_dim, self.block_size = heads, kv_heads, head_dim, block_size
        model = shape(heads, kv_heads, head_dim)
        self.plain = KVCache(model, 4000 // block_size, block_size, dtype)
        self.cache = KVCache(model, 4000 // block_size, block_size, dtype, is_native=True)
        vectors = torch.randn(2 * kv_heads, self.cache.num_blocks + 1, block_size, head_dim)
        if dtype == torch.int8:
            vectors, scales = quantize(vectors.view(-1, head_dim))
            for cache in (self.plain, self.cache):
                cache.scales(0).view(-1).copy_(scales)  # type: ignore[union-attr]
            vectors = vectors.view(2 * kv_heads, -1, block_size, head_dim)
        self.plain.layer(0).copy_(vectors)
        self.cache.layer(0).copy_(vectors)
        keys = self.cache.layer(0)[:kv_heads].view(kv_heads, -1, head_dim, block_size)
        keys.copy_(vectors[:kv_heads].transpose(2, 3))
        self.attention = NativeAttention(self.cache, heads, head_dim)
        free = list(range(self.cache.num_blocks))
        random.Random(0).shuffle(free)
        self.chunks = [self.chunk(str(i), start, length, free) for i, (start, length) in enumerate(MIXED)]
        rows = sum(length for _, length in MIXED)
        self.qkv = torch.randn(rows, (heads + 2 * kv_heads) * head_dim)

    def chunk(self, name: str, start: int, length: int, free: list[int]) -> Chunk:
        sequence = Running(Request(name, range(start + length)))
        sequence.phase = Phase.RUNNING
        sequence.block_table = [free.pop() for _ in range(-(-(start + length) // self.block_size))]
        return Chunk(sequence, start, length, True)

    def inputs(self, chunks: Sequence[Chunk]) -> StepInputs:
        return InputBuilder(16, 1408, self.block_size).build(chunks)

    def attend(self, chunks: Sequence[Chunk], qkv: torch.Tensor, rules: Rules) -> torch.Tensor:
        out = torch.full((len(qkv), self.heads * self.head_dim), torch.nan)
        self.attention.attend(0, qkv, rules, self.inputs(chunks), out)
        return out

    def expected(self, rules: Rules) -> torch.Tensor:
        spans, row = [], 0
        for chunk in self.chunks:
            spans.append(Span(row, chunk.start, chunk.length, np.array(chunk.sequence.block_table)))
            row += chunk.length
        queries = self.qkv[:, : self.heads * self.head_dim].view(row, self.heads, self.head_dim)
        return reference.attend(queries, self.plain.layer(0), spans, rules, self.plain.scales(0))


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_mixed_batch_equals_reference(dtype: torch.dtype, rules: Rules) -> None:
    world = World(6, 2, 64, 16, dtype)
    native().set_num_threads(2)  # type: ignore[union-attr]
    found = world.attend(world.chunks, world.qkv, rules)
    assert torch.allclose(found, world.expected(rules), atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim", "block_size"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_a_row_alone_is_bit_identical(
    heads: int, kv_heads: int, head_dim: int, block_size: int, dtype: torch.dtype
) -> None:
    """Whatever the batch, the chunk that the row is in, and the number of threads (three: work is cut at splits)."""
    world = World(heads, kv_heads, head_dim, block_size, dtype)
    for rules in RULES[:1] + RULES[3:]:
        together = world.attend(world.chunks, world.qkv, rules)
        row = 0
        for index, chunk in enumerate(world.chunks):
            native().set_num_threads(1 + index % 3)  # type: ignore[union-attr]
            for offset in {0, chunk.length // 2, chunk.length - 1}:
                alone = Chunk(chunk.sequence, chunk.start + offset, 1, True)
                found = world.attend([alone], world.qkv[row + offset : row + offset + 1], rules)
                assert torch.equal(found[0], together[row + offset])
            begin = chunk.length // 3
            part = Chunk(chunk.sequence, chunk.start + begin, chunk.length - begin, True)
            found = world.attend([part], world.qkv[row + begin : row + chunk.length], rules)
            assert torch.equal(found, together[row + begin : row + chunk.length])
            row += chunk.length


def test_nan_in_a_key_or_value_reaches_every_row_that_sees_it_and_no_other() -> None:
    for half in (slice(0, 2), slice(2, 4)):
        for value in (torch.nan, torch.inf):
            world = World(6, 2, 64, 16, torch.bfloat16)
            sick = world.chunks[1].sequence.block_table[2]
            world.cache.layer(0)[half, sick] = value
            found = world.attend(world.chunks, world.qkv, RULES[0])
            assert torch.isfinite(found).all(dim=-1).tolist() == [row != 1 for row in range(len(found))]


def test_stale_numbers_behind_a_sequence_are_never_read() -> None:
    world = World(6, 2, 64, 16, torch.float32)
    clean = world.attend(world.chunks[2:3], world.qkv[:1], RULES[0])
    last = world.chunks[2].sequence.block_table[1]  # positions 16 to 31 of 32: all visible
    assert world.chunks[2].start == 31
    shorter = [Chunk(world.chunks[2].sequence, 20, 1, True)]
    before = world.attend(shorter, world.qkv[:1], RULES[0])
    world.cache.layer(0)[:2, last].view(2, 64, 16)[:, :, 5:] = torch.nan
    world.cache.layer(0)[2:, last, 5:] = torch.nan
    assert torch.equal(world.attend(shorter, world.qkv[:1], RULES[0]), before)
    assert not torch.equal(clean, before)


def test_keys_and_values_are_rotated_and_kept_as_by_torch() -> None:
    """Norm per head, rotation and store in one pass, for each kind of cache; padding rows are not stored."""
    torch.manual_seed(1)
    heads, kv_heads, dim, rows = 6, 2, 32, 9
    cos, sin = torch.randn(40, dim // 2), torch.randn(40, dim // 2)
    norms = torch.randn(dim), torch.randn(dim)
    qkv = torch.randn(rows, (heads + 2 * kv_heads) * dim)
    each = qkv.view(rows, -1, dim).clone()
    normed = each[:, : heads + kv_heads]
    normed = normed / (normed.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    normed[:, :heads] *= norms[0]
    normed[:, heads:] *= norms[1]
    first, second = normed.chunk(2, dim=-1)
    c, s = cos[7 : 7 + rows].unsqueeze(1), sin[7 : 7 + rows].unsqueeze(1)
    each[:, : heads + kv_heads] = torch.cat((first * c - second * s, second * c + first * s), dim=-1)
    for dtype in (torch.float32, torch.bfloat16, torch.int8):
        plain = KVCache(shape(heads, kv_heads, dim), 4, 16, dtype)
        cache = KVCache(shape(heads, kv_heads, dim), 4, 16, dtype, is_native=True)
        sequence = Running(Request("r", range(16)))
        sequence.block_table = [2]
        inputs = InputBuilder(1, 16, 16).build([Chunk(sequence, 7, rows, True)])
        inputs.slots[-1] = -1
        mine = qkv.clone()
        NativeAttention(cache, heads, dim).rotate_store(0, mine, norms, 1e-5, (cos, sin), inputs)
        assert torch.allclose(mine.view(rows, -1, dim), each, atol=1e-5)
        plain.write(0, mine.view(rows, -1, dim)[: rows - 1, heads:], plain.write_rows(inputs.slots[: rows - 1]))
        keys = cache.layer(0)[:kv_heads].view(kv_heads, -1, dim, 16).transpose(2, 3)
        # Half way between two int8 numbers, the reciprocal of a scale may round to either.
        most = 1 if dtype == torch.int8 else 0
        assert (keys.float() - plain.layer(0)[:kv_heads].float()).abs().max() <= most
        assert (cache.layer(0)[kv_heads:].float() - plain.layer(0)[kv_heads:].float()).abs().max() <= most
        if dtype == torch.int8:
            assert torch.allclose(cache.scales(0), plain.scales(0), rtol=1e-6)  # type: ignore[arg-type]


def test_a_key_that_is_not_finite_poisons_its_scale() -> None:
    """int8 cannot show NaN, its scale can: the row fails instead of going on with a wrong number."""
    world = World(6, 2, 64, 16, torch.int8)
    chunk = world.chunks[3]
    qkv = torch.randn(1, world.qkv.shape[1])
    qkv[0, -1] = torch.inf
    tables = torch.ones(8, 32), torch.zeros(8, 32)
    world.attention.rotate_store(0, qkv, (None, None), 1e-5, tables, world.inputs([chunk]))
    found = world.attend([chunk], qkv[:, :], RULES[0])
    assert not torch.isfinite(found).all()
    world.cache.scrub(chunk.sequence.block_table)
    assert torch.isfinite(world.attend([chunk], qkv, RULES[0])).all()
