"""Speed and memory of the weight formats: one random model, stored in each, run by the engine's own model runner.

    python benchmarks/weight_formats.py [--threads 2] [--layers 8 --hidden 768 --inner 2304] [--repeats 5] [--formats]

Prints, for each format: seconds to load, MiB of weights held, tokens/s of decoding 1, 8 and 64 sequences and of
prefilling 512 tokens.  All formats take turns in each repeat, and the best counts: other programs only ever slow a
step down.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from headrace.core.batch import Batch, Chunk
from headrace.core.request import Request, SamplingParams
from headrace.core.sequence import Sequence
from headrace.engine.config import EngineConfig
from headrace.engine.demo import DEMO_DIRECTORY
from headrace.engine.model_runner import ModelRunner
from headrace.engine.models.shape import model_shape
from headrace.engine.models.tensors import linear_modules, other_tensors
from headrace.engine.quant.layout import EXPANDED, PACKED, W4A8

CONTEXT, BLOCK = 512, 16
GROUP = 128
FORMATS: dict[str, dict[str, Any] | None] = {
    "bf16": None,
    "gptq int4, W4A8": {"quant_method": "gptq", "bits": 4, "group_size": GROUP},
    "gptq int4, torch's": {"quant_method": "gptq", "bits": 4, "group_size": GROUP},
    "gptq int4, expanded": {"quant_method": "gptq", "bits": 4, "group_size": GROUP},
    "int8 W8A8": {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "config_groups": {
            "group_0": {
                "weights": {"num_bits": 8, "type": "int", "strategy": "channel"},
                "input_activations": {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True},
            }
        },
    },
    "fp8, expanded": {"quant_method": "fp8"},
}

INT4 = {"gptq int4, torch's": PACKED, "gptq int4, expanded": EXPANDED}


def write_model(directory: Path, sizes: dict[str, int], quantization: dict[str, Any] | None) -> None:
    """Random numbers in the format: what they are does not matter to the speed."""
    config = json.loads((DEMO_DIRECTORY / "config.json").read_text()) | sizes
    shape = model_shape(config)
    torch.manual_seed(0)
    tensors = {name: torch.rand(size).to(torch.bfloat16) for name, size in other_tensors(shape).items()}
    method = (quantization or {}).get("quant_method")
    for module in linear_modules(shape):
        rows, columns, name = module.rows, module.columns, module.name
        if method == "gptq":
            tensors[f"{name}.qweight"] = torch.randint(-(2**31), 2**31 - 1, (columns // 8, rows), dtype=torch.int32)
            tensors[f"{name}.qzeros"] = torch.full((columns // GROUP, rows // 8), 0x77777777, dtype=torch.int32)
            tensors[f"{name}.scales"] = torch.full((columns // GROUP, rows), 0.005, dtype=torch.float16)
        elif method is None:
            tensors[f"{name}.weight"] = (torch.randn(rows, columns) * 0.03).to(torch.bfloat16)
        else:
            weight = torch.randint(-127, 128, (rows, columns)).to(torch.int8)
            tensors[f"{name}.weight"] = weight if method != "fp8" else weight.to(torch.float8_e4m3fn)
            tensors[f"{name}.weight_scale"] = torch.full((rows, 1), 0.0005)
    save_file(tensors, directory / "model.safetensors")
    if quantization:
        config["quantization_config"] = quantization
    (directory / "config.json").write_text(json.dumps(config))


def engine_config(directory: Path, threads: int, int4: str) -> EngineConfig:
    return EngineConfig(
        model="random",
        served_model_names=("random",),
        tokenizer=str(directory),
        dtype="bfloat16",
        load_format="safetensors",
        seed=0,
        max_model_len=2 * CONTEXT,
        max_num_batched_tokens=2048,
        max_num_seqs=64,
        block_size=BLOCK,
        num_kv_blocks=64 * (CONTEXT // BLOCK + 1),
        enable_chunked_prefill=True,
        scheduler_version="v1",
        scheduling_policy="fcfs",
        enable_prefix_caching=False,
        long_prefill_token_threshold=0,
        num_threads=threads,
        generation_config="vllm",
        chat_template=None,
        model_path=directory,
        int4=int4,
    )


def seconds(runner: ModelRunner, batch: Batch) -> float:
    begin = time.perf_counter()
    runner.run(batch)
    return time.perf_counter() - begin


def sequence(index: int) -> Sequence:
    params = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
    made = Sequence(Request(f"r{index}", tuple(range(1, CONTEXT + 1)), params))
    blocks = CONTEXT // BLOCK + 1
    made.block_table = list(range(index * blocks, (index + 1) * blocks))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--inner", type=int, default=2304)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--formats", choices=FORMATS, nargs="+", default=list(FORMATS))
    given = parser.parse_args()
    sizes = {
        "hidden_size": given.hidden,
        "intermediate_size": given.inner,
        "num_hidden_layers": given.layers,
        "num_attention_heads": given.hidden // 64,
    }
    sequences = [sequence(index) for index in range(64)]
    runners: dict[str, ModelRunner] = {}
    loads: dict[str, float] = {}
    for name in given.formats:
        quantization = FORMATS[name]
        with tempfile.TemporaryDirectory() as folder:
            write_model(Path(folder), sizes, quantization)
            begin = time.perf_counter()
            runners[name] = ModelRunner(engine_config(Path(folder), given.threads, INT4.get(name, W4A8)))
            loads[name] = time.perf_counter() - begin
    decodes = [tuple(Chunk(each, CONTEXT - 1, 1, True) for each in sequences[:count]) for count in (1, 8, 64)]
    cases = [Batch(0, chunks) for chunks in decodes] + [Batch(0, (Chunk(sequences[0], 0, CONTEXT, True),))]
    best = {name: [float("inf")] * len(cases) for name in given.formats}
    for _ in range(given.repeats + 1):  # the first builds kernels
        for index, batch in enumerate(cases):
            for name, runner in runners.items():
                times = [seconds(runner, batch) for _ in range(4 if index == 0 else 1)]
                best[name][index] = min(best[name][index], *times)
    print(f"{'format':22} {'load s':>7} {'MiB':>7} {'1 seq':>8} {'8 seqs':>8} {'64 seqs':>8} {'prefill':>8}   tokens/s")
    for name, runner in runners.items():
        held = runner.memory_bytes()["weights"] / 2**20
        rates = [tokens / each for tokens, each in zip((1, 8, 64, CONTEXT), best[name], strict=True)]
        print(f"{name:22} {loads[name]:7.2f} {held:7.0f} " + " ".join(f"{rate:8.0f}" for rate in rates), flush=True)


if __name__ == "__main__":
    main()
