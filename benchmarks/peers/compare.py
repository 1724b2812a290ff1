"""headrace and the peers that are installed, in turn on the same work: rates, and ratios with their spread.

    python benchmarks/peers/compare.py --model DIR --peers DIR [--rounds 5] [--tasks TASK ...] [--only NAME ...]

Tasks (see tasks.py): `mixed` (64 requests together, total tok/s), `prompt` (512 tokens, prompt tok/s), `single` (one
sequence, output tok/s).  Every turn is a process of its own that loads, warms up and is timed inside.  Run
`prepare.py` before.  `--json FILE` keeps all rates with the machine's measured bandwidth and arithmetic beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from turns import ratios, spread, take_turns

from headrace.engine.machine import usable_cores
from headrace.engine.probe import measure as probe

HERE = Path(__file__).parent
OURS = "headrace"
BOTH_CORES = {"VLLM_CPU_OMP_THREADS_BIND": "0,1", "VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}
VLLM = {"VLLM_CPU_KVCACHE_SPACE": "2", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "VLLM_NO_USAGE_STATS": "1"}


@dataclass(frozen=True, slots=True)
class Contestant:
    """A program that runs a task and prints its rate as JSON in its last line.

    tasks      those that it can do
    options    of one task, for a program that does not know our tasks by name
    """

    program: tuple[str, ...]
    tasks: tuple[str, ...] = ("mixed", "prompt", "single")
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=dict)
    needs: Path | None = None

    def run(self, task: str) -> float:
        """Tokens/s."""
        return _rate(self.output(task, *self.options.get(task, ())))

    def output(self, task: str, *more: str) -> str:
        """What it printed, with `more` arguments.  Exits with the end of that when it fails."""
        environ = {**os.environ, **self.environ, "TOKENIZERS_PARALLELISM": "false"}
        with tempfile.TemporaryFile("w+") as errors:
            command = [*(part.replace("TASK", task) for part in self.program), *more]
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environ, cwd=HERE)
            if done.returncode:
                errors.seek(0)
                sys.exit(f"{' '.join(command)}\n{errors.read()[-3000:]}{done.stdout[-2000:]}")
        return done.stdout


def _rate(output: str) -> float:
    if output.lstrip().startswith("["):  # llama-bench: a list of tests, here of one
        return float(json.loads(output)[0]["avg_ts"])
    return float(json.loads(output.strip().splitlines()[-1])["tokens_per_s"])


def contestants(model: Path, peers: Path, prepared: Path, scale: float) -> dict[str, Contestant]:
    """All that could take part, by name; `needs` says what must be there."""
    cores = str(usable_cores()[0])

    def runner(name: str, python: Path | str, *options: str, **extra: object) -> Contestant:
        program = (str(python), str(HERE / f"run_{name}.py"), *options, "--task", "TASK", "--scale", str(scale))
        return Contestant(program, **extra)  # type: ignore[arg-type]

    def llama(kind: str) -> Contestant:
        binary, file = peers / "llamacpp/build/bin/llama-bench", prepared / f"{kind}.gguf"
        program = (str(binary), "-m", str(file), "-t", cores, "-r", "3", "-o", "json")
        options = {"prompt": ("-p", "512", "-n", "0"), "single": ("-p", "0", "-n", "64")}
        return Contestant(program, tuple(options), options, needs=file)

    of_model, ov = ("--model", str(model)), ("--model", str(prepared / "openvino"))
    vllm, openvino = peers / "vllm/bin/python", peers / "openvino/bin/python"
    return {
        OURS: runner("headrace", sys.executable, *of_model),
        "headrace int8": runner("headrace", sys.executable, *of_model, "--quantization", "int8"),
        "openvino bf16": runner("openvino", openvino, *ov, "--dtype", "bf16", needs=prepared / "openvino"),
        "openvino f32": runner("openvino", openvino, *ov, "--dtype", "f32", needs=prepared / "openvino"),
        "openvino f32, KV u8": runner(
            "openvino", openvino, *ov, "--dtype", "f32", "--quantization", "u8", needs=prepared / "openvino"
        ),
        "vllm bf16, both cores": runner("vllm", vllm, *of_model, environ={**VLLM, **BOTH_CORES}, needs=vllm),
        "vllm f32, both cores": runner(
            "vllm", vllm, *of_model, "--dtype", "float32", environ={**VLLM, **BOTH_CORES}, needs=vllm
        ),
        "llama.cpp bf16": llama("bf16"),
        "llama.cpp Q8_0": llama("q8_0"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--peers", type=Path, required=True)
    parser.add_argument("--prepared", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="of the mixed requests' lengths, for slow machines")
    parser.add_argument("--tasks", nargs="+", default=["mixed", "prompt", "single"])
    parser.add_argument("--only", nargs="+", help="names of contestants; default: all that are there")
    parser.add_argument("--ours", default=OURS, help="whose rate the ratios are of")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    model, peers = given.model.resolve(), given.peers.resolve()
    prepared = (given.prepared or given.model.with_name(given.model.name + "-peers")).resolve()
    known = contestants(model, peers, prepared, given.scale)
    if unknown := set(given.only or ()) - known.keys():
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    there = {n: c for n, c in known.items() if (c.needs is None or c.needs.exists()) and n in (given.only or known)}
    kept: dict[str, object] = {
        "model": model.name,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "scale": given.scale,
        "tasks": {},
    }
    for task in given.tasks:
        limits = probe("float32", usable_cores()[0], 64 << 20)
        print(f"\n{task}: tok/s; the machine reads {limits.bytes_per_s / 1e9:.0f} GB/s, ", end="")
        print(f"multiplies {limits.flops_per_s / 1e9:.0f} GFLOP/s at fp32", flush=True)
        measures = {name: partial(each.run, task) for name, each in there.items() if task in each.tasks}
        rates = take_turns(measures, given.rounds, lambda line: print(f"  {line}", flush=True))
        for name, values in rates.items():
            line = f"{name:24} {spread(values, 1):32}"
            if name != given.ours and given.ours in rates:
                line += f" {given.ours} / {name}: {spread(ratios(rates, given.ours, name))}"
            print(line, flush=True)
        kept["tasks"][task] = {  # type: ignore[index]
            "rates": rates,
            "bytes_per_s": limits.bytes_per_s,
            "flops_per_s": limits.flops_per_s,
        }
    if given.json:
        given.json.write_text(json.dumps(kept, indent=1))


if __name__ == "__main__":
    main()
