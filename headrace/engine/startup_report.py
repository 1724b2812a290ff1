"""What the engine says of itself at start: users ask why it is slow, or why fewer requests run than they expect."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.engine import kernels
from headrace.engine.config import GIB, EngineConfig
from headrace.engine.dtypes import DTYPE_BYTES, kv_bytes_per_token
from headrace.engine.model_files import read_facts
from headrace.engine.models.shape import ModelShape
from headrace.engine.probe import measure
from headrace.engine.quant.layout import W4A8
from headrace.sizing.memory import sequences_that_fit
from headrace.sizing.roofline import roofline
from headrace.version import VERSION

if TYPE_CHECKING:
    from headrace.engine.async_engine import AsyncEngine


def before_loading(config: EngineConfig, reasons: Sequence[str]) -> list[str]:
    """The settings and why each has its value."""
    return [
        f"headrace {VERSION}, Python {platform.python_version()}, {_processor()}",
        *reasons,
        f"scheduling: policy {config.policy}, {config.max_num_batched_tokens} tokens a step, "
        f"{config.max_num_seqs} sequences, {config.max_model_len} tokens a sequence, "
        f"prefix caching {'on' if config.enable_prefix_caching else 'off'}, queue {config.scheduling_policy} "
        f"of at most {config.max_num_queued_reqs}",
        f"loading {config.model} ({config.load_format}, {config.dtype}) …",
    ]


def after_loading(engine: AsyncEngine, seconds: float, *, probe: bool = True) -> list[str]:
    """What was really loaded, what it can hold, and (unless `probe` is off) how fast this machine lets it be."""
    import torch

    config = engine.config
    held = engine.memory_bytes()
    assert config.model_path is not None
    facts = read_facts(config.model_path)
    predicted = {
        "weights": facts.weight_bytes(DTYPE_BYTES[config.dtype], int4=config.int4, to_int8=config.to_int8),
        "kv_cache": config.kv_tokens * kv_bytes_per_token(facts.shape, config.kv_cache_dtype),
    }
    sequences = sequences_that_fit(config.num_kv_blocks, config.block_size, config.max_model_len)
    template = "from the model" if config.chat_template is None else "given"
    defaults = ", ".join(f"{name}={value}" for name, value in engine.sampling_defaults.items())
    return [
        f"loaded in {seconds:.1f} s: "
        + ", ".join(
            f"{name} {size / GIB:.2f} GiB ({predicted.get(name, 0) / GIB:.2f} predicted)" for name, size in held.items()
        ),
        _kernels(config, f"torch {torch.__version__} with {torch.backends.cpu.get_cpu_capability()}"),
        f"KV cache: {config.num_kv_blocks:,} blocks of {config.block_size} = {config.kv_tokens:,} tokens in "
        f"{config.kv_cache_dtype}",
        f"Maximum concurrency for {config.max_model_len:,} tokens per request: {sequences:.2f}x",
        *(_speed(config, facts.shape, engine.step_weight_bytes) if probe else ()),
        f"sampling defaults: {defaults or 'none (temperature 1)'}; "
        f"end tokens {sorted(engine.tokenizer.eos_token_ids)}; "
        f"chat template {template if engine.tokenizer.has_chat_template else 'none: only /v1/completions'}",
    ]


def _kernels(config: EngineConfig, torch_version: str) -> str:
    """Who computes."""
    module, isa = kernels.load()
    if module is None:
        return (
            f"kernels: {torch_version}, {config.num_threads} threads; no native kernels: {isa}. That costs most where "
            "bf16 is not in the processor: weights are then held and read as fp32, twice the bytes of each step"
        )
    return f"kernels: native linear layers with {isa}, {config.num_threads} threads; {torch_version} for the rest"


def _speed(config: EngineConfig, shape: ModelShape, step_weight_bytes: int) -> list[str]:
    """The machine's rates, and the tokens/s that they allow at most."""
    scheme = shape.quantization
    is_int8 = config.to_int8 or (scheme is not None and scheme.has_int8_activations)
    is_int4 = scheme is not None and scheme.bits == 4 and config.int4 == W4A8
    kind = config.dtype
    if kernels.native() is not None and (is_int4 or is_int8):
        kind = "int4" if is_int4 else "int8"
    machine = measure(kind, config.num_threads, step_weight_bytes)
    bound = roofline(shape, step_weight_bytes, machine.bytes_per_s, machine.flops_per_s)
    return [
        f"machine: reads {machine.bytes_per_s / 1e9:.1f} GB/s, computes {machine.flops_per_s / 1e9:.0f} GFLOP/s in "
        f"{kind} with {config.num_threads} threads (measured in {machine.seconds:.2f} s)",
        f"that allows at most {bound.decode_tokens_per_s:,.0f} tokens/s to one sequence "
        f"({bound.step_bytes / 1e9:.2f} GB a step) and {bound.prefill_tokens_per_s:,.0f} tokens/s to prompts "
        f"({bound.flops_per_token / 1e9:.2f} GFLOP a token)",
    ]


def _processor() -> str:
    """The CPU's name, where the system tells."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
