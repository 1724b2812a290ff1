"""How fast this machine reads memory and multiplies, measured in a fraction of a second when the server starts."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from headrace.engine import kernels, pages

REPEATS = 3
ROUNDS, PEAK_REPEATS = 3000, 50  # short, so that some fall between interruptions
_KINDS = {"float32": "fp32", "bfloat16": "bf16", "int8": "int8", "int4": "int4"}
READ_BYTES = 64 << 20  # beyond the caches of most machines; smaller weights are read as often from a cache
LEAST_READ_BYTES = 8 << 20
ROWS, COLUMNS = 256, 2048


@dataclass(frozen=True, slots=True)
class Probe:
    """Best of a few repeats: bytes/s of one pass over memory, FLOP/s of a matrix product; `seconds` it took in all."""

    bytes_per_s: float
    flops_per_s: float
    seconds: float


def measure(dtype: str, num_threads: int, weight_bytes: int) -> Probe:
    """Measure with the model's dtype and threads, on a buffer as large as its weights (64 MiB at most).

    `dtype` is "float32", "bfloat16" or (native kernels only) "int8" or "int4".  With native kernels these are reads and
    multiply-adds in the instructions that the kernels use, on their threads; else a torch sum and a torch product.
    """
    import torch

    started_s = time.perf_counter()
    native = kernels.native()
    if native is not None:
        native.set_num_threads(num_threads)
        buffer = pages.zeros(max(LEAST_READ_BYTES, min(weight_bytes, READ_BYTES))).fill_(1)  # where weights are
        rates = (
            native.read_rate(buffer.data_ptr(), buffer.nbytes, REPEATS),
            max(native.peak_rate(_KINDS[dtype], ROUNDS) for _ in range(PEAK_REPEATS)),
        )
        return Probe(*rates, seconds=time.perf_counter() - started_s)
    torch.set_num_threads(num_threads)  # belongs to the calling thread
    with torch.inference_mode():
        read = max(LEAST_READ_BYTES, min(weight_bytes, READ_BYTES))
        buffer = torch.full((read // 4,), 0.5)  # written, so that its pages are real
        read_s = _best(lambda: buffer.sum())
        kind = getattr(torch, dtype)
        left, right = torch.full((ROWS, COLUMNS), 0.5, dtype=kind), torch.full((COLUMNS, COLUMNS), 0.5, dtype=kind)
        product_s = _best(lambda: torch.nn.functional.linear(left, right))
    return Probe(
        bytes_per_s=read / read_s,
        flops_per_s=2 * ROWS * COLUMNS * COLUMNS / product_s,
        seconds=time.perf_counter() - started_s,
    )


def _best(work: Callable[[], object]) -> float:
    work()  # builds the kernel
    times = []
    for _ in range(REPEATS):
        started_s = time.perf_counter()
        work()
        times.append(time.perf_counter() - started_s)
    return max(min(times), 1e-9)
