"""Memory for what is read all the time: 2 MiB pages where the system has them, tensors packed one behind the other.

A pass over weights in 4 KiB pages misses the TLB at every page; on a virtual machine each miss is a walk through two
tables.  Linux gives huge pages to mappings that ask for them (`transparent_hugepage` at `madvise` or `always`);
elsewhere this is plain memory.
"""

from __future__ import annotations

import contextlib
import mmap
import threading
import weakref

import torch
from torch import Tensor

CHUNK_BYTES = 64 << 20  # of address space: what is never touched takes no memory
ALIGNMENT = 64

_lock = threading.Lock()
_chunk: weakref.ref[mmap.mmap] | None = None  # the tensors in it keep it alive
_used = 0


def carve(num_bytes: int) -> Tensor:
    """uint8 zeros `[num_bytes]` that begin at a cache line; they share a mapping with the tensors carved before."""
    global _chunk, _used
    with _lock:
        chunk = _chunk() if _chunk is not None else None
        if chunk is None or _used + num_bytes > len(chunk):
            chunk = _mapped(max(num_bytes, CHUNK_BYTES))
            _chunk, _used = weakref.ref(chunk), 0
        tensor = torch.frombuffer(chunk, dtype=torch.uint8, count=num_bytes, offset=_used)
        _used = -(-(_used + num_bytes) // ALIGNMENT) * ALIGNMENT
    return tensor


def zeros(num_bytes: int) -> Tensor:
    """uint8 zeros `[num_bytes]` in a mapping of their own; what is never touched takes no memory."""
    return torch.frombuffer(_mapped(num_bytes), dtype=torch.uint8) if num_bytes else torch.empty(0, dtype=torch.uint8)


def _mapped(num_bytes: int) -> mmap.mmap:
    # Private: shared memory, which mmap gives otherwise, has a rule of its own for huge pages.
    mapping = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            mapping.madvise(mmap.MADV_HUGEPAGE)
    return mapping
