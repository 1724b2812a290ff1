"""The KV cache as numbers: which block belongs to whom, which may be found again, which goes next.

Block ids only; the tensors behind them live in the engine.  Rules: vLLM V1's block pool (free blocks in eviction
order, identity by content, release in reverse), plus V0's admission arithmetic.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence as Ids
from enum import Enum

from headrace.core.sequence import BlockKey, Sequence
from headrace.errors import InvariantError


class Room(Enum):
    """V0's answer to "may this prompt come in?"."""

    NOW = "now"
    LATER = "later"
    NEVER = "never"


class BlockManager:
    """Owns `num_blocks` blocks of `block_size` tokens; writes `block_table` and the cache fields of sequences.

    A block is in use (referenced), free and findable (freed, its content still addressable by key), or free and
    blank.  Free blocks are handed out blank ones first, most recently freed first, then findable ones, least
    recently freed first: that is vLLM V1's single list, into which blank blocks go at the front and findable
    blocks at the tail.  Taking a findable block is the only eviction there is.
    """

    # The single list always reads "blank ... blank, findable ... findable", so a stack and an ordered dict keep
    # exactly its order, with every operation O(1) and none slower than its C implementation.

    def __init__(self, num_blocks: int, block_size: int, *, enable_prefix_caching: bool, watermark_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self.watermark_blocks = watermark_blocks
        self._refs = [0] * num_blocks
        self._keys: list[BlockKey | None] = [None] * num_blocks
        self._blank = list(range(num_blocks - 1, -1, -1))
        self._findable: OrderedDict[int, None] = OrderedDict()
        # First holder of each key, and the later ones: equal blocks are kept apart (block tables only grow at
        # the end), and the next one takes over when the first is evicted.
        self._by_key: dict[BlockKey, int] = {}
        self._twins: dict[BlockKey, list[int]] = {}

    @property
    def num_free(self) -> int:
        """Blocks that can be handed out; findable ones count, they are free."""
        return len(self._blank) + len(self._findable)

    @property
    def usage(self) -> float:
        """Share of blocks in use, 0 to 1."""
        return 1.0 - self.num_free / self.num_blocks

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def room(self, num_tokens: int) -> Room:
        """V0's check: blocks of the whole prompt, shared or not, above the watermark."""
        need = self.blocks_for(num_tokens)
        if self.num_blocks - need < self.watermark_blocks:
            return Room.NEVER
        return Room.LATER if self.num_free - need < self.watermark_blocks else Room.NOW

    def may_hit(self, sequence: Sequence) -> bool:
        """Whether `sequence` looks for its beginning here; one that wants every position computed does not."""
        params = sequence.request.params
        return self.enable_prefix_caching and not (params.scores_prompt or params.skip_reading_prefix_cache)

    def lookup(self, sequence: Sequence, *, whole: bool = False) -> list[int]:
        """Blocks that already hold the beginning of `sequence`; changes nothing.

        At least one token is always left to compute: at most `(len - 1) // block_size` blocks are returned, or
        with `whole` (V0) all full blocks, and then the caller recomputes the last token.
        """
        if not self.may_hit(sequence):
            return []
        most = (sequence.num_tokens - (0 if whole else 1)) // self.block_size
        self._extend_keys(sequence, most)
        hits: list[int] = []
        for key in sequence.block_keys[:most]:
            block = self._by_key.get(key)
            if block is None:
                break
            hits.append(block)
        return hits

    def grow(self, sequence: Sequence, num_tokens: int, *, reuse: Ids[int] = (), whole: int = 0, keep: int = 0) -> bool:
        """Make the block table of `sequence` cover `num_tokens` tokens; False (and no change) when it cannot.

        reuse   blocks from `lookup`, attached first; they need a free block only when nobody uses them
        whole   a length in tokens that must fit as well, without being taken (V1's reserve_full)
        keep    blocks that must stay free afterwards
        """
        table = sequence.block_table
        held = len(table) + len(reuse)
        need = self.blocks_for(num_tokens) - held
        revived = 0
        if reuse:
            refs = self._refs
            revived = sum([refs[block] == 0 for block in reuse])
        if max(need, self.blocks_for(whole) - held) + revived + keep > self.num_free:
            return False
        if reuse:
            for block in reuse:
                if self._refs[block] == 0:
                    del self._findable[block]
                self._refs[block] += 1
            table.extend(reuse)
            sequence.num_published = len(reuse)
        for _ in range(need):
            table.append(self._take())
        return True

    def shrink(self, sequence: Sequence, num_tokens: int) -> None:
        """Give back what the block table holds beyond `num_tokens` tokens: blocks that nobody else holds or finds."""
        table = sequence.block_table
        for _ in range(len(table) - self.blocks_for(num_tokens)):
            block = table.pop()
            if self._refs[block] != 1 or self._keys[block] is not None:
                raise InvariantError(f"block {block} of request {sequence.request_id} is taken back and in use")
            self._refs[block] = 0
            self._blank.append(block)

    def publish(self, sequence: Sequence, num_tokens: int) -> None:
        """Make the full blocks among the first `num_tokens` tokens findable; their tokens are final."""
        full = num_tokens // self.block_size
        if full <= sequence.num_published:
            return
        self._extend_keys(sequence, full)
        for index in range(sequence.num_published, full):
            block, key = sequence.block_table[index], sequence.block_keys[index]
            self._keys[block] = key
            if self._by_key.setdefault(key, block) != block:
                self._twins.setdefault(key, []).append(block)
        sequence.num_published = full

    def retract(self, sequence: Sequence, start: int = 0) -> None:
        """Make the blocks of `sequence` from position `start` on unfindable: their content is not to be trusted."""
        for block in sequence.block_table[start // self.block_size :]:
            self._forget(block)
        sequence.num_published = min(sequence.num_published, start // self.block_size)

    def free(self, sequence: Sequence) -> None:
        """Give up all blocks, the last one first: the tail of a sequence is reused before its shared head."""
        for block in reversed(sequence.block_table):
            refs = self._refs[block] - 1
            if refs < 0:
                raise InvariantError(f"block {block} of request {sequence.request_id} is freed twice")
            self._refs[block] = refs
            if refs == 0:
                if self._keys[block] is None:
                    self._blank.append(block)
                else:
                    self._findable[block] = None
        sequence.block_table = []
        sequence.num_published = 0

    def reset_prefix_cache(self) -> bool:
        """Forget all content; False (and no change) while a block is in use, whose sequence would publish more."""
        if self.num_free < self.num_blocks:
            return False
        self._blank[:0] = reversed(self._findable)
        self._findable.clear()
        self._keys = [None] * self.num_blocks
        self._by_key.clear()
        self._twins.clear()
        return True

    def _take(self) -> int:
        """The next free block in eviction order, now with one owner and without a key."""
        if self._blank:
            block = self._blank.pop()
        else:
            block = self._findable.popitem(last=False)[0]
            self._forget(block)
        self._refs[block] = 1
        return block

    def _forget(self, block: int) -> None:
        key = self._keys[block]
        if key is None:
            return
        self._keys[block] = None
        twins = self._twins.get(key)
        if self._by_key[key] != block:
            assert twins is not None
            twins.remove(block)
        elif twins:
            self._by_key[key] = twins.pop(0)
        else:
            del self._by_key[key]
        if twins is not None and not twins:
            del self._twins[key]

    def _extend_keys(self, sequence: Sequence, count: int) -> None:
        """Compute the keys of the first `count` blocks, each once in a sequence's life.

        key(i) = (digest of blocks 0 .. i-1 and the salt, tokens of block i).  Looking a key up compares the
        tokens themselves, so a collision would have to happen in the digest of an equally long prefix.  The
        digest is fixed: hits do not depend on the process.
        """
        keys = sequence.block_keys
        known = len(keys)
        if count <= known:
            return
        size = self.block_size
        packed = array("q", sequence.tokens_between(known * size, count * size)).tobytes()
        stride = 8 * size
        for start in range(0, len(packed), stride):
            before = _digest(*keys[-1]) if keys else _digest(b"headrace", sequence.request.cache_salt.encode())
            keys.append((before, packed[start : start + stride]))


def _digest(before: bytes, tokens: bytes) -> bytes:
    return hashlib.sha256(before + tokens).digest()
