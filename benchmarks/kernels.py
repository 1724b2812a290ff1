"""How much of this machine's limit each linear kernel reaches.  Run it with nothing else on the machine.

For the matrices of Qwen2.5-0.5B: the rate of products and of weights read, each beside what the probes reach
(multiply-adds in registers; one pass over memory beyond the caches).  The larger share is what binds.
Best of many repetitions; layers take turns on copies that do not fit into the caches together.

    python benchmarks/kernels.py [--threads 1 2] [--rows 1 4 8 ...] [--formats fp32 bf16 int8 int4 ...]

int4 has groups of 128.  fp32-torch is oneDNN's product of packed weights, where torch has it; int4-torch is torch's own
kernel for the same weights (neither by default: the latter takes long).
"""

from __future__ import annotations

import argparse
import time
from types import ModuleType

import torch

from headrace.engine import kernels, pages
from headrace.engine.kernels.linear import NativeLinear
from headrace.engine.models.layers import Linear
from headrace.engine.quant.linears import Int4Linear
from headrace.engine.quant.unpack import GroupedWeights

SHAPES = {
    "qkv": (1152, 896),
    "attention output": (896, 896),
    "gate and up": (9728, 896),
    "down": (896, 4864),
    "head": (151936, 896),
}
ROWS = (1, 4, 8, 16, 32, 64, 128, 512)
DEFAULT_FORMATS = ("fp32", "bf16", "int8", "int4")
FORMATS = (*DEFAULT_FORMATS, "fp32-torch", "int4-torch")
GROUP = 128
READ_BYTES = 256 << 20
COPIES_BYTES = 256 << 20  # eight times a last cache of 32 MiB: of twice as much, part stays in it
LEAST_CALLS = 12  # the best of one or two is what the machine happened to do
MANY_ROWS = 64  # from here on weights are read once for many products: caches matter little


Layer = NativeLinear | Linear | Int4Linear


def layer(native: ModuleType, name: str, outputs: int, inputs: int) -> Layer:
    """One layer of random weights."""
    weight = torch.randn(outputs, inputs) * inputs**-0.5
    if name == "fp32-torch":
        return Linear(weight)
    if name.startswith("int4"):
        values = torch.randint(0, 16, (outputs, inputs), dtype=torch.uint8)
        scales = torch.full((outputs, inputs // GROUP), 0.01)
        grouped = GroupedWeights(values, scales, torch.full_like(scales, 8.0), GROUP)
        return NativeLinear(native, [grouped]) if name == "int4" else Int4Linear(grouped, None, torch.float32)
    if name == "int8":
        integers, scales = (weight * 25 * inputs**0.5).clamp(-127, 127).to(torch.int8), torch.full((outputs,), 0.01)
        return NativeLinear(native, [integers], scales=scales)
    return NativeLinear(native, [weight.to(torch.bfloat16 if name == "bf16" else torch.float32)])


def copies(native: ModuleType, name: str, outputs: int, inputs: int) -> list[Layer]:
    """Layers of the same shape, enough of them to be read from memory."""
    first = layer(native, name, outputs, inputs)
    return [first, *(layer(native, name, outputs, inputs) for _ in range(-(-COPIES_BYTES // first.num_bytes) - 1))]


def best_s(layers: list[Layer], x: torch.Tensor, limit_s: float) -> float:
    """The best time of one call."""
    times: list[float] = []
    until = time.perf_counter() + limit_s
    while len(times) < LEAST_CALLS or time.perf_counter() < until:
        started_s = time.perf_counter()
        layers[len(times) % len(layers)](x)
        times.append(time.perf_counter() - started_s)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--formats", choices=FORMATS, nargs="+", default=list(DEFAULT_FORMATS))
    parser.add_argument("--shapes", choices=SHAPES, nargs="+", default=list(SHAPES))
    parser.add_argument("--seconds", type=float, default=0.2, help="for one cell of the table")
    args = parser.parse_args()
    native = kernels.native()
    if native is None:
        parser.exit(2, f"no native kernels: {kernels.load()[1]}\n")
    memory = pages.zeros(READ_BYTES).fill_(1)
    for threads in args.threads:
        native.set_num_threads(threads)
        reads = native.read_rate(memory.data_ptr(), memory.nbytes, 20)
        for name in args.formats:
            torch.set_num_threads(threads if name.endswith("-torch") else 1)
            kind = name.removesuffix("-torch")
            peak = max(native.peak_rate(kind, 3000) for _ in range(200))  # short: between interruptions
            print(
                f"\n{native.isa()}, {threads} threads, {name}: {peak / 1e9:.0f} G operations/s, {reads / 1e9:.1f} GB/s"
            )
            print(f"{'rows':>18}" + "".join(f"{rows:>16}" for rows in args.rows))
            for shape in args.shapes:
                layers = copies(native, name, *SHAPES[shape])
                cells = [cell(layers, shape, rows, peak, reads, args.seconds) for rows in args.rows]
                row = "".join(f"{each:>16}" for each in cells)
                print(f"{shape:>18}{row}", flush=True)
    print("\na cell: G operations/s (share of the peak | share of the read rate)")


def cell(layers: list[Layer], shape: str, rows: int, peak: float, reads: float, limit_s: float) -> str:
    """One kernel's rate and its shares."""
    outputs, inputs = SHAPES[shape]
    seconds = best_s(layers if rows < MANY_ROWS else layers[:1], torch.randn(rows, inputs), limit_s)
    operations = 2 * rows * outputs * inputs / seconds
    return f"{operations / 1e9:.0f} ({operations / peak:.0%}|{layers[0].num_bytes / seconds / reads:.0%})"


if __name__ == "__main__":
    main()
