"""Decoding by batch and context: tokens/s of headrace and the peers that are installed, and shares of the limit.

    python benchmarks/peers/grid.py --model DIR [--peers DIR] [--only NAME ...] [--batches 1 8] [--contexts 256 1024]

A cell is the rate of all sequences' tokens after their first, from runs of 1 and of 17 tokens each, median of three.
To prefill 32 contexts of 4,096 tokens would take a quarter of an hour, so the sequences of a cell share theirs through
the prefix cache: it is computed once, and each sequence adds four tokens of its own and what it generates.  What is
shared is read from memory once a step if it stays in the processor's cache meanwhile, so the limit of a cell is the
larger of two times: for the products of all sequences at the machine's peak, and for the weights and the distinct keys
and values at its read rate.  Contexts that are not shared read more.  The read rate and the peak are the better of
before and after: a shared machine changes within minutes, and a share above 100 % says that it did.  llama.cpp has
batch 1 only; OpenVINO's weights are in a format of its own, so it has no limit.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from compare import HERE, OURS, Contestant, contestants
from tasks import GRID_TOKENS

from headrace.engine.machine import usable_cores
from headrace.engine.probe import Probe, measure
from headrace.sizing.memory import kv_bytes_per_token
from headrace.sizing.model_shape import model_shape
from headrace.sizing.modules import Described, Role
from headrace.sizing.roofline import step_work

BATCHES, CONTEXTS = (1, 8, 32), (256, 1024, 4096)
# Of contestants whose formats are known: bytes of a weight, of a number in the KV cache, and what multiplies.
FORMATS = {
    "headrace": (2, 2, "bfloat16"),
    "headrace int8": (1, 2, "int8"),
    "vllm bf16": (2, 2, "bfloat16"),
    "vllm f32": (4, 4, "float32"),
}


def limit(shape: Described, weight: int, kv: int, machine: Probe, batch: int, context: int) -> tuple[float, str]:
    """(tokens/s that the machine allows a cell at most, what bounds it)."""

    def held(module: object) -> int:
        # Norms and biases are too few to matter; an embedding table is read as the head or not at all.
        return weight * module.numbers if module.linear or module.role is Role.EMBEDDING else 0  # type: ignore[attr-defined]

    work = step_work(shape, held, Fraction(kv), decodes=batch, context=context)
    distinct = (context + batch * GRID_TOKENS) * kv_bytes_per_token(shape, kv)
    reads_s = (work.weight_bytes + distinct) / machine.bytes_per_s
    products_s = work.flops / machine.flops_per_s
    return batch / max(reads_s, products_s), "reads" if reads_s > products_s else "products"


def cells_of(contestant: Contestant, batches: Sequence[int], contexts: Sequence[int]) -> list[dict[str, float]]:
    """What a contestant reached, as `tasks.run_grid` returns it."""
    if "mixed" in contestant.tasks:
        sizes = ("--batches", *map(str, batches), "--contexts", *map(str, contexts))
        found: list[dict[str, float]] = json.loads(contestant.output("grid", *sizes).strip().splitlines()[-1])["cells"]
        return found
    if 1 not in batches:
        return []
    depths = ",".join(map(str, contexts))
    output = contestant.output("grid", "-p", "0", "-n", str(GRID_TOKENS), "-d", depths)
    return [
        {"batch": 1, "context": test["n_depth"], "tokens_per_s": test["avg_ts"]}
        | {"least": min(test["samples_ts"]), "most": max(test["samples_ts"])}
        for test in json.loads(output)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--peers", type=Path, default=HERE, help="without it headrace is measured alone")
    parser.add_argument("--prepared", type=Path)
    parser.add_argument("--only", nargs="+", help="names of contestants; default: all that are there")
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--contexts", type=int, nargs="+", default=list(CONTEXTS))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    model, peers = given.model.resolve(), given.peers.resolve()
    prepared = (given.prepared or given.model.with_name(given.model.name + "-peers")).resolve()
    known = contestants(model, peers, prepared, 1.0)
    if unknown := set(given.only or ()) - known.keys():
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    shape = model_shape(json.loads((model / "config.json").read_text()))
    kept: dict[str, object] = {}
    ours: dict[tuple[float, float], float] = {}
    for name, contestant in known.items():
        if name not in (given.only or known) or not (contestant.needs is None or contestant.needs.exists()):
            continue
        weight, kv, kind = FORMATS.get(name.partition(",")[0], (0, 0, "float32"))
        before = measure(kind, usable_cores()[0], 64 << 20)
        started_s = time.perf_counter()
        cells = cells_of(contestant, given.batches, given.contexts)
        spent_s = time.perf_counter() - started_s
        after = measure(kind, usable_cores()[0], 64 << 20)
        reads, peak = (
            max(pair) for pair in zip(*((p.bytes_per_s, p.flops_per_s) for p in (before, after)), strict=True)
        )
        machine = Probe(reads, peak, spent_s)
        print(
            f"\n{name}: {spent_s:.0f} s in all; the machine reads "
            f"{machine.bytes_per_s / 1e9:.1f} GB/s, multiplies {machine.flops_per_s / 1e9:.0f} G operations/s in {kind}"
        )
        kept[name] = {"cells": cells, "bytes_per_s": machine.bytes_per_s, "flops_per_s": machine.flops_per_s}
        for cell in cells:
            place, rate = (cell["batch"], cell["context"]), cell["tokens_per_s"]
            line = f"batch {place[0]:>3}, context {place[1]:>5}: {rate:8.1f} tok/s "
            line += f"({cell['least']:.1f} to {cell['most']:.1f}), {1e3 * place[0] / rate:6.1f} ms a step"
            if weight:
                most, what = limit(shape, weight, kv, machine, int(place[0]), int(place[1]))
                line += f", {rate / most:4.0%} of what {what} allow"
            if name == OURS:
                ours[place] = rate
            elif place in ours:
                line += f"; {OURS} / {name}: {ours[place] / rate:.2f}"
            print(line, flush=True)
    if given.json:
        given.json.write_text(json.dumps({"model": model.name, "contestants": kept}, indent=1))


if __name__ == "__main__":
    main()
