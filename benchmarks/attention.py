"""Native attention against the machine's limits: K/V bytes/s of decodes, FLOP/s of prompts; and sampling per row.

    python benchmarks/attention.py [--threads N] [--kv-cache-dtype bfloat16|float32|int8]

Decode: 64 sequences of 512 tokens, over so many layers that no cache holds them.  The limits are `_native.read_rate`
and `peak_rate`, measured right before.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from headrace.core.batch import Chunk
from headrace.core.request import Request, SamplingParams
from headrace.core.sequence import Phase, Sequence
from headrace.engine.attention.native import NativeAttention
from headrace.engine.attention.span import Rules
from headrace.engine.kernels import native, sampling
from headrace.engine.kv_cache import KV_DTYPES, KVCache
from headrace.engine.models.shape import model_shape
from headrace.engine.step_inputs import InputBuilder

SHAPES = {"Qwen2.5-0.5B": (14, 2, 64, 24), "Qwen3-0.6B": (16, 8, 128, 8)}  # heads, KV heads, head size, layers
BLOCK = 16


def best_s(work: Callable[[], object], repeats: int = 7) -> float:
    work()
    times = []
    for _ in range(repeats):
        started_s = time.perf_counter()
        work()
        times.append(time.perf_counter() - started_s)
    return min(times)


def world(shape: tuple[int, int, int, int], dtype: torch.dtype, chunks: list[tuple[int, int]], layers: int):
    heads, kv_heads, head_dim, _ = shape
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "vocab_size": 8,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6,
    }
    blocks = sum(-(-(start + length) // BLOCK) for start, length in chunks)
    cache = KVCache(model_shape(config), blocks, BLOCK, dtype, is_native=True)
    for layer in range(layers):
        if (scales := cache.scales(layer)) is not None:
            cache.layer(layer).random_(-127, 128)
            scales.fill_(0.01)
        else:
            cache.layer(layer).normal_()
    batch, free = [], iter(torch.randperm(blocks).tolist())
    for index, (start, length) in enumerate(chunks):
        sequence = Sequence(Request(str(index), range(start + length)))
        sequence.phase = Phase.RUNNING
        sequence.block_table = [next(free) for _ in range(-(-(start + length) // BLOCK))]
        batch.append(Chunk(sequence, start, length, True))
    inputs = InputBuilder(len(chunks), 8192, BLOCK).build(batch)
    rows = sum(length for _, length in chunks)
    qkv, out = torch.randn(rows, (heads + 2 * kv_heads) * head_dim), torch.empty(rows, heads * head_dim)
    attention, rules = NativeAttention(cache, heads, head_dim), Rules(head_dim**-0.5)

    def run() -> None:
        for layer in range(layers):
            attention.attend(layer, qkv, rules, inputs, out)

    return run, cache.num_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kv-cache-dtype", default="bfloat16", choices=list(KV_DTYPES))
    args = parser.parse_args()
    module = native()
    assert module is not None, "the native kernels are not built: scripts/build-kernels"
    torch.set_num_threads(1)
    module.set_num_threads(args.threads)
    buffer = torch.ones(64 << 20)
    read, peak = module.read_rate(buffer.data_ptr(), buffer.nbytes, 5), module.peak_rate("fp32")
    print(f"{module.isa()}, {args.threads} threads: reads {read / 1e9:.1f} GB/s, multiplies {peak / 1e9:.0f} GFLOP/s")
    dtype = KV_DTYPES[args.kv_cache_dtype]
    for name, shape in SHAPES.items():
        heads, _, head_dim, layers = shape
        run, num_bytes = world(shape, dtype, [(511, 1)] * 64, layers)
        rate = num_bytes / best_s(run)
        flops = 4 * heads * head_dim * 64 * 512 * layers / (num_bytes / rate)
        print(
            f"{name} {args.kv_cache_dtype}: decode 64 x 512: {rate / 1e9:.1f} GB/s, {rate / read:.0%} of the reads "
            f"({flops / 1e9:.0f} GFLOP/s, {flops / peak:.0%})"
        )
        for start, length in ((0, 512), (0, 2048), (3072, 1024)):
            run, _ = world(shape, dtype, [(start, length)], 1)
            work = 4 * heads * head_dim * (length * start + length * (length + 1) / 2)
            rate = work / best_s(run, 4)
            print(f"  prompt of {length} behind {start}: {rate / 1e9:.0f} GFLOP/s, {rate / peak:.0%} of the peak")
    logits = torch.randn(16, 151_936)
    for deviation in (1.0, 4.0):
        for filters in ({}, {"top_k": 40}, {"top_p": 0.9}, {"top_k": 50, "top_p": 0.95}, {"min_p": 0.05}):
            params = [SamplingParams(temperature=0.8, **filters)] * 16
            rows = logits * deviation
            seconds = best_s(lambda: sampling.choose(module, rows, params, range(16), range(16)))  # noqa: B023
            print(f"sample of 151,936, deviation {deviation:g}, {filters}: {seconds / 16 * 1e3:.3f} ms a row")
    print(f"greedy: {best_s(lambda: sampling.greedy(module, logits)) / 16 * 1e3:.3f} ms a row")


if __name__ == "__main__":
    main()
