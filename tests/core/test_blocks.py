"""The block pool: eviction order, sharing, and what may be found again."""

from __future__ import annotations

from collections.abc import Sequence as Ids

import pytest

from headrace.core.blocks import BlockManager, Room
from headrace.core.request import Request
from headrace.core.sequence import Sequence
from headrace.errors import InvariantError

SIZE = 4


def manager(num_blocks: int = 8, *, caching: bool = True, watermark_blocks: int = 0) -> BlockManager:
    return BlockManager(num_blocks, SIZE, enable_prefix_caching=caching, watermark_blocks=watermark_blocks)


def sequence(tokens: Ids[int], salt: str = "") -> Sequence:
    return Sequence(Request("r", tokens, cache_salt=salt))


def place(blocks: BlockManager, tokens: Ids[int], salt: str = "") -> Sequence:
    """Admit and compute a whole prompt, reusing what is found."""
    placed = sequence(tokens, salt)
    assert blocks.grow(placed, len(tokens), reuse=blocks.lookup(placed))
    blocks.publish(placed, len(tokens))
    return placed


def free_order(blocks: BlockManager) -> list[int]:
    """The order in which the free blocks would be handed out; uses them up."""
    taker = sequence(range(10_000, 10_000 + SIZE * blocks.num_free))
    assert blocks.grow(taker, taker.num_tokens)
    return taker.block_table


def test_a_fresh_pool_hands_out_blocks_in_order() -> None:
    blocks = manager(4)
    assert place(blocks, range(9)).block_table == [0, 1, 2]
    assert blocks.num_free == 1
    assert blocks.usage == 0.75


def test_growth_that_does_not_fit_changes_nothing() -> None:
    blocks = manager(2)
    asked = sequence(range(9))
    assert not blocks.grow(asked, 9)
    assert (asked.block_table, blocks.num_free) == ([], 2)
    assert not blocks.grow(asked, 4, whole=9)
    assert not blocks.grow(asked, 8, keep=1)
    assert blocks.grow(asked, 8)


def test_freed_findable_blocks_go_last_and_blank_ones_first() -> None:
    blocks = manager(6)
    a = place(blocks, range(10))  # blocks 0 and 1 are full, 2 is not
    b = place(blocks, range(50, 54))  # block 3
    blocks.free(a)
    blocks.free(b)
    # Blank: 2 was freed last, 4 and 5 were never used.  Findable, least recent first: the tail of A before its head.
    assert free_order(blocks) == [2, 4, 5, 1, 0, 3]


def test_a_hit_revives_a_free_block_and_takes_a_free_one() -> None:
    blocks = manager(4)
    blocks.free(place(blocks, range(8)))
    again = sequence(range(9))
    assert blocks.lookup(again) == [0, 1]
    assert blocks.num_free == 4
    assert blocks.grow(again, 9, reuse=[0, 1])
    assert (again.block_table, blocks.num_free) == ([0, 1, 2], 1)


def test_a_hit_on_a_block_in_use_costs_nothing() -> None:
    blocks = manager(3)
    first = place(blocks, range(8))
    second = sequence(range(9))
    assert blocks.grow(second, 9, reuse=blocks.lookup(second))
    assert (second.block_table, blocks.num_free) == ([0, 1, 2], 0)
    blocks.free(first)
    assert blocks.num_free == 0, "the second one still uses them"


def test_one_token_is_always_left_to_compute() -> None:
    blocks = manager()
    place(blocks, range(8))
    assert blocks.lookup(sequence(range(8))) == [0]
    assert blocks.lookup(sequence(range(9))) == [0, 1]
    assert blocks.lookup(sequence(range(8)), whole=True) == [0, 1]


def test_a_hit_needs_the_same_beginning_and_the_same_salt() -> None:
    blocks = manager()
    place(blocks, [1, 1, 1, 1, 2, 2, 2, 2, 0])
    assert blocks.lookup(sequence([1, 1, 1, 1, 2, 2, 2, 2, 0])) == [0, 1]
    assert blocks.lookup(sequence([3, 3, 3, 3, 2, 2, 2, 2, 0])) == []
    assert blocks.lookup(sequence([1, 1, 1, 1, 3, 3, 3, 3, 0])) == [0]
    assert blocks.lookup(sequence([1, 1, 1, 1, 2, 2, 2, 2, 0], salt="tenant")) == []


def test_keys_do_not_depend_on_the_process() -> None:
    # Pinned on purpose: a random or changed hash would make simulated and recorded hits differ between runs.
    asked = sequence(range(9), salt="s")
    manager().lookup(asked)
    assert asked.block_keys[1][0].hex()[:16] == "4d8c88ec1eecbe96"


def test_tokens_are_compared_when_digests_collide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.core.blocks._digest", lambda before, tokens: b"same")
    blocks = manager()
    place(blocks, range(5))
    assert blocks.lookup(sequence([9, 9, 9, 9, 9])) == []
    assert blocks.lookup(sequence(range(5))) == [0]


def test_the_prompt_is_hashed_once_however_often_it_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks, asked = manager(16), sequence(range(40))
    blocks.lookup(asked)

    def forbidden(before: bytes, tokens: bytes) -> bytes:
        raise AssertionError("hashed again")

    monkeypatch.setattr("headrace.core.blocks._digest", forbidden)
    assert blocks.lookup(asked) == []
    assert blocks.grow(asked, 36)
    blocks.publish(asked, 36)
    blocks.free(asked)
    assert len(blocks.lookup(asked)) == 9


def test_equal_blocks_are_kept_apart_and_the_second_one_takes_over() -> None:
    blocks = manager(4)
    a, b = sequence(range(5)), sequence(range(5))
    for twin in (a, b):  # both admitted before either was published: as V0 does within a step
        assert blocks.grow(twin, 5)
    for twin in (a, b):
        blocks.publish(twin, 5)
    assert (a.block_table, b.block_table) == ([0, 1], [2, 3])
    asked = sequence(range(5))
    assert blocks.lookup(asked) == [0]
    blocks.retract(a)
    assert blocks.lookup(asked) == [2]
    blocks.retract(b)
    assert blocks.lookup(asked) == []


def test_handing_out_a_findable_block_forgets_it() -> None:
    blocks = manager(2)
    blocks.free(place(blocks, range(8)))
    assert blocks.lookup(sequence(range(9))) == [0, 1]
    blocks.grow(sequence(range(70, 74)), 4)  # takes block 1, the tail
    assert blocks.lookup(sequence(range(9))) == [0]


def test_reset_forgets_everything_but_only_when_nothing_is_in_use() -> None:
    blocks = manager(3)
    used = place(blocks, range(8))
    assert not blocks.reset_prefix_cache()
    assert blocks.lookup(sequence(range(9))) == [0, 1]
    blocks.free(used)
    assert blocks.reset_prefix_cache()
    assert blocks.lookup(sequence(range(9))) == []
    assert free_order(blocks) == [2, 1, 0]


def test_without_caching_nothing_is_found_and_nothing_is_hashed() -> None:
    blocks = manager(caching=False)
    asked = sequence(range(9))
    assert blocks.grow(asked, 9)
    blocks.free(asked)
    assert blocks.lookup(sequence(range(9))) == []
    assert asked.block_keys == []


def test_a_double_free_is_an_error_of_ours() -> None:
    blocks = manager()
    asked = place(blocks, range(5))
    table = list(asked.block_table)
    blocks.free(asked)
    asked.block_table = table
    with pytest.raises(InvariantError, match="block 1 of request r is freed twice"):
        blocks.free(asked)


@pytest.mark.parametrize(("tokens", "room"), [(24, Room.NOW), (25, Room.NEVER), (12, Room.NOW), (13, Room.NOW)])
def test_room_in_an_empty_pool(tokens: int, room: Room) -> None:
    assert manager(8, watermark_blocks=2).room(tokens) is room


def test_room_is_later_when_others_hold_the_blocks() -> None:
    blocks = manager(8, watermark_blocks=2)
    place(blocks, range(16))
    assert blocks.room(8) is Room.NOW
    assert blocks.room(9) is Room.LATER
