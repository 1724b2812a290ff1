from __future__ import annotations

import gc
import mmap
import re
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from headrace.engine import pages


def test_carved_tensors_are_zeros_of_their_own_at_cache_lines() -> None:
    sizes = (1, 63, 64, 65, 4097, 3 << 20)
    tensors = [pages.carve(size) for size in sizes]
    for number, (tensor, size) in enumerate(zip(tensors, sizes, strict=True), 1):
        assert tensor.dtype == torch.uint8 and tensor.shape == (size,) and not tensor.any()
        assert tensor.data_ptr() % pages.ALIGNMENT == 0
        tensor.fill_(number)
    assert all((tensor == number).all() for number, tensor in enumerate(tensors, 1))


def test_more_than_a_chunk_has_a_mapping_of_its_own() -> None:
    small = pages.carve(10)
    large = pages.carve(pages.CHUNK_BYTES + 1)
    large[-1] = 7
    assert not small.any() and large[-1] == 7


def test_a_mapping_goes_with_the_last_tensor_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_chunk", None)
    first, second = pages.carve(100), pages.carve(100)
    assert second.data_ptr() - first.data_ptr() == 128
    reference = pages._chunk
    assert isinstance(reference, weakref.ref)
    view = second[5:10]
    del first, second
    gc.collect()
    assert reference() is not None
    del view
    gc.collect()
    assert reference() is None
    assert not pages.carve(100).any()  # and the next one begins anew


def test_zeros_take_no_memory_before_they_are_used() -> None:
    before = _resident_bytes()
    large = pages.zeros(1 << 30)
    assert _resident_bytes() - before < 64 << 20
    large[1 << 29] = 1
    assert large[1 << 29] == 1 and pages.zeros(0).shape == (0,)


@pytest.mark.parametrize("make", [pages.zeros, pages.carve])
def test_memory_is_private_and_asks_for_huge_pages(make: Callable[[int], torch.Tensor]) -> None:
    """Linux gives none to shared mappings here, silently."""
    if not Path("/sys/kernel/mm/transparent_hugepage").exists():
        pytest.skip("this kernel has no huge pages")
    tensor = make(3 << 20)
    address = tensor.data_ptr()
    lines = Path("/proc/self/smaps").read_text().splitlines()
    for line in lines:
        if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) (\S+)", line):
            is_ours = int(match[1], 16) <= address < int(match[2], 16)
            mode = match[3] if is_ours else ""
        elif is_ours and line.startswith("VmFlags:"):
            assert mode == "rw-p" and "hg" in line.split()
            return
    pytest.fail("no such mapping")


def test_a_kernel_without_huge_pages_gives_plain_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        pytest.skip("mmap has no MADV_HUGEPAGE here")
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 9999)
    assert not pages.zeros(5 << 20).any()


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
