"""Rules R9 to R12: whether the device has room for the KV cache, and the KV cache for one sequence."""

from __future__ import annotations

import math
from collections.abc import Iterator

from headrace.sizing.settings import BUDGET, LENGTH, SEATS, MemoryFacts, ServeSettings, Violation

GIB = 1 << 30


def memory_violations(s: ServeSettings, memory: MemoryFacts | None) -> Iterator[Violation]:
    """R12 before R11 before R9/R10: each makes the next one moot, so at most one of them is reported."""
    if memory is not None and memory.free_bytes < memory.utilization * memory.total_bytes:
        yield _r12_device_in_use(memory)
    elif s.kv_tokens is not None and s.kv_tokens < s.block_size:
        yield _r11_no_blocks(s, memory)
    elif s.kv_tokens is not None and (fit := s.kv_tokens // s.block_size * s.block_size) < s.max_model_len:
        yield _r9_r10_one_sequence(s, s.kv_tokens, fit, memory)


def _r9_r10_one_sequence(s: ServeSettings, kv_tokens: int, fit: int, memory: MemoryFacts | None) -> Violation:
    """The pool must hold one sequence of the longest legal length; both versions refuse, in different words."""
    if s.scheduler_version == "v0":
        rule = "R9"
        message = (
            f"The model's max seq len ({s.max_model_len}) is larger than the maximum number of tokens that can be "
            f"stored in KV cache ({kv_tokens}). Try increasing `gpu_memory_utilization` or decreasing `max_model_len` "
            "when initializing the engine."
        )
    else:
        rule = "R10"
        if memory is not None and memory.kv_bytes_per_token:
            needed = f"{_gib(s.max_model_len * memory.kv_bytes_per_token)} KV cache is"
            available = f"memory ({_gib(kv_tokens * memory.kv_bytes_per_token)})"
        else:
            needed, available = f"{s.max_model_len} tokens of KV cache are", f"({kv_tokens} tokens)"
        message = (
            f"To serve at least one request with the model's max seq len ({s.max_model_len}), {needed} needed, which "
            f"is larger than the available KV cache {available}. Based on the available memory, the estimated maximum "
            f"model length is {fit}. Try increasing `gpu_memory_utilization` or decreasing `max_model_len` when "
            "initializing the engine."
        )
    return Violation(
        rule,
        "error",
        LENGTH,
        str(s.max_model_len),
        f"at most {fit} (the KV cache holds {kv_tokens} tokens in blocks of {s.block_size})",
        message,
        f"Lower {LENGTH} from {s.max_model_len} to at most {fit}, or give the KV cache more memory "
        "(--gpu-memory-utilization).",
    )


def _r11_no_blocks(s: ServeSettings, memory: MemoryFacts | None) -> Violation:
    spent = ", ".join(f"{what} {_gib(size)}" for what, size in memory.budget) if memory else ""
    utilization = f"{memory.utilization:g}" if memory else "too low"
    fix = "Raise --gpu-memory-utilization" + (f" from {utilization} to at most 1" if memory else " to at most 1")
    fix += f", or lower {BUDGET} or {SEATS}, which need memory of their own."
    if memory is not None and memory.budget:
        need = sum(size for _, size in memory.budget) + (memory.kv_bytes_per_token or 0) * s.block_size
        share = math.ceil(100 * need / memory.total_bytes) / 100 if memory.total_bytes else math.inf
        if share <= 1:
            fix = f"Raise --gpu-memory-utilization from {utilization} to at least {share:g}."
        else:
            fix = (
                f"Lower {BUDGET} or {SEATS}, which need memory of their own, or take a smaller model: {_gib(need)} are "
                f"needed for all this and one block, {_gib(memory.total_bytes)} are there."
            )
    return Violation(
        "R11",
        "error",
        "--gpu-memory-utilization",
        utilization,
        "high enough to leave one block of KV cache" + (f" after {spent}" if spent else ""),
        "No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing the "
        "engine.",
        fix,
    )


def _r12_device_in_use(memory: MemoryFacts) -> Violation:
    wanted = memory.utilization * memory.total_bytes
    share = int(100 * memory.free_bytes / memory.total_bytes) / 100  # rounded down: it must fit
    return Violation(
        "R12",
        "error",
        "--gpu-memory-utilization",
        f"{memory.utilization:g}",
        f"at most {share:g} ({_gib(memory.free_bytes)} of {_gib(memory.total_bytes)} are free)",
        f"Free memory on device {memory.device} ({memory.free_bytes / GIB:.2f}/{_gib(memory.total_bytes)}) on startup "
        f"is less than desired GPU memory utilization ({memory.utilization:g}, {_gib(wanted)}). Decrease GPU memory "
        "utilization or reduce GPU memory used by other processes.",
        f"Lower --gpu-memory-utilization from {memory.utilization:g} to at most {share:g}, or stop the other processes "
        f"that use {memory.device}.",
    )


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"
