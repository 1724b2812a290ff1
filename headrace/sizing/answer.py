"""Everything that sizing says of one model and one server, as one JSON-ready value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.errors import ConfigError
from headrace.sizing import memory
from headrace.sizing.architectures import Model, describe
from headrace.sizing.checkpoint import checkpoint_bytes
from headrace.sizing.deployment import Deployment, judged, kv_number_bytes, sequences_of, start_up
from headrace.sizing.hardware import GIB, Device, Figure, find_device
from headrace.sizing.limits import Limit, limits, prices
from headrace.sizing.modules import Layer, all_modules
from headrace.sizing.published import FORMULA, published
from headrace.sizing.roofline import step_work
from headrace.sizing.rules import errors, explain
from headrace.sizing.settings import ServeSettings
from headrace.sizing.vllm import defaults, version_of
from headrace.sizing.weights import StoredWeights, model_dtype, read_storage


@dataclass(frozen=True, slots=True)
class Question:
    """A model's files and the flags of a server; None: not given."""

    name: str
    config: Mapping[str, Any]
    beside: Mapping[str, Any] | None = None
    directory: Path | None = None
    gpu: str | None = None
    memory_gib: float | None = None
    tensor_parallel_size: int = 1
    gpu_memory_utilization: float | None = None
    vllm_version: str | None = None
    max_num_batched_tokens: int | None = None
    max_num_seqs: int | None = None
    max_model_len: int | None = None
    dtype: str = "auto"
    kv_cache_dtype: str = "auto"
    block_size: int = 16
    enable_chunked_prefill: bool = True
    enable_prefix_caching: bool = True
    scheduler_version: str = "v1"
    long_prefill_token_threshold: int = 0
    max_num_partial_prefills: int = 1
    max_long_partial_prefills: int = 1
    num_gpu_blocks_override: int | None = None
    kv_cache_memory_bytes: int | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None


def answer(asked: Question) -> dict[str, Any]:
    """What `headrace size` prints.  Raises ConfigError for what cannot be read or is no size at all."""
    _check(asked)
    model = describe(asked.config, asked.name)
    notes = list(model.notes)
    dtype = _dtype(asked, notes)
    storage = read_storage(asked.config, dtype, asked.name, asked.beside)
    notes += storage.notes
    if storage.kv_hint and asked.kv_cache_dtype == "auto":
        notes.append("the checkpoint asks for an fp8 KV cache: --kv-cache-dtype fp8 halves the bytes a token")
    if model.architecture == "DeepseekV4ForCausalLM" and asked.kv_cache_dtype == "auto":
        notes.append("vLLM serves this family with --kv-cache-dtype fp8_ds_mla only; 16 bits are shown for comparison")
    device = find_device(asked.gpu) if asked.gpu is not None else None
    server = _deployment(asked, model, StoredWeights(model, storage), device, notes)
    sized = _model_facts(server, asked)
    has_pool = bool(server.total_bytes or server.blocks is not None or server.kv_memory_bytes is not None)
    sized |= (
        _pool(server, asked) if has_pool else dict.fromkeys(("kv_bytes", "kv_blocks", "kv_tokens", "max_concurrency"))
    )
    broken = judged(server)
    sized["starts"] = not errors(broken)
    sized["violations"] = [
        {"rule": each.rule, "severity": each.severity, "flag": each.flag, "message": each.message, "fix": each.fix}
        | {"sentence": explain(each)}
        for each in broken
    ]
    sized["rules"] = [_limit(each) for each in limits(server)]
    sized["prices"] = [
        {"change": each.change, "kv_tokens": each.kv_tokens, "effect": each.effect}
        for each in (prices(server) if server.total_bytes else ())
    ]
    sized["roofline"] = _roofline(server, device, sized) if device is not None else None
    sized["notes"] = notes
    return sized


def _check(asked: Question) -> None:
    if asked.gpu is not None and asked.memory_gib is not None:
        raise ConfigError("--gpu and --memory exclude each other; give one")
    if asked.memory_gib is not None and not 0 < asked.memory_gib < 1e6:
        raise ConfigError(f"--memory {asked.memory_gib:g} must be a number of GiB above 0")
    if not 1 <= asked.tensor_parallel_size <= 1024:
        raise ConfigError(f"--tensor-parallel-size {asked.tensor_parallel_size} must be between 1 and 1024")
    if asked.gpu_memory_utilization is not None and not 0 < asked.gpu_memory_utilization <= 1:
        raise ConfigError(f"--gpu-memory-utilization {asked.gpu_memory_utilization:g} must be above 0 and at most 1")
    for name in ("block_size", "max_model_len", "max_num_seqs", "max_num_batched_tokens", "prompt_tokens"):
        value = getattr(asked, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {value} must be at least 1")
    for name in ("output_tokens", "num_gpu_blocks_override", "kv_cache_memory_bytes"):
        value = getattr(asked, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {value} must be at least 1")


def _dtype(asked: Question, notes: list[str]) -> str:
    try:
        return model_dtype(asked.config, asked.name, asked.dtype)
    except ConfigError:
        if asked.dtype != "auto":
            raise
        # vLLM's own rule for a configuration that is silent, on devices that have bfloat16.
        notes.append("config.json states no dtype: bfloat16 is taken, as vLLM does; --dtype decides otherwise")
        return "bfloat16"


def _deployment(
    asked: Question, model: Model, stored: StoredWeights, device: Device | None, notes: list[str]
) -> Deployment:
    heads = model.num_heads
    if heads % asked.tensor_parallel_size:
        raise ConfigError(
            f"--tensor-parallel-size {asked.tensor_parallel_size} does not divide the model's {heads} attention heads"
        )
    longest = asked.max_model_len or model.max_position_embeddings
    if longest is None:
        raise ConfigError(f"{asked.name}: key 'max_position_embeddings' is missing; give --max-model-len")
    usual = defaults(device, asked.vllm_version, asked.enable_chunked_prefill, longest)
    settings = ServeSettings(
        max_num_batched_tokens=asked.max_num_batched_tokens or usual.max_num_batched_tokens,
        max_num_seqs=asked.max_num_seqs or min(usual.max_num_seqs, asked.max_num_batched_tokens or usual.max_num_seqs),
        max_model_len=longest,
        enable_chunked_prefill=asked.enable_chunked_prefill,
        scheduler_version=asked.scheduler_version,
        block_size=asked.block_size,
        enable_prefix_caching=asked.enable_prefix_caching and asked.scheduler_version != "v0",
        long_prefill_token_threshold=asked.long_prefill_token_threshold,
        max_num_partial_prefills=asked.max_num_partial_prefills,
        max_long_partial_prefills=asked.max_long_partial_prefills,
    )
    silent = [
        f"{flag} {value}"
        for flag, value, given in (
            ("--max-num-batched-tokens", settings.max_num_batched_tokens, asked.max_num_batched_tokens),
            ("--max-num-seqs", settings.max_num_seqs, asked.max_num_seqs),
            ("--gpu-memory-utilization", usual.utilization, asked.gpu_memory_utilization),
        )
        if given is None
    ]
    if silent:
        notes.append(f"defaults taken: {', '.join(silent)} ({usual.why})")
    total = asked.memory_gib * GIB if asked.memory_gib is not None else device.memory.value if device else None
    return Deployment(
        model=model,
        stored=stored,
        settings=settings,
        version=version_of(asked.vllm_version),
        total_bytes=None if total is None else int(total),
        utilization=asked.gpu_memory_utilization or usual.utilization,
        tensor_parallel=asked.tensor_parallel_size,
        kv_dtype=asked.kv_cache_dtype,
        blocks=asked.num_gpu_blocks_override,
        kv_memory_bytes=asked.kv_cache_memory_bytes,
    )


def _model_facts(server: Deployment, asked: Question) -> dict[str, Any]:
    model, number = server.model, kv_number_bytes(server.kv_dtype, server.storage.dtype, server.model)
    count, formula = memory.parameters(model), published(model, number)
    kinds = Counter(map(_kind, model.layers))
    return {
        "model": asked.name,
        "architecture": model.architecture,
        "layers": {"total": len(model.layers), **kinds},
        "parameters": count.total,
        "active_parameters": sum(module.active for module in all_modules(model)),
        "parameters_by_role": {
            "embedding": count.embedding,
            "head": count.head,
            "attention": count.attention,
            "mlp": count.mlp,
            "norms": count.norms,
        },
        "dtype": server.storage.dtype,
        "weight_format": server.storage.name,
        "weight_bytes": server.stored.per_rank(),
        "weight_bytes_per_device": server.weights,
        "checkpoint_bytes": checkpoint_bytes(asked.directory) if asked.directory is not None else None,
        "kv_cache_dtype": server.kv_dtype,
        "kv_bytes_per_token": memory.kv_bytes_per_token(model, number),
        "kv_bytes_per_token_per_device": memory.kv_bytes_per_token(model, number, server.tensor_parallel),
        "kv_bytes_per_token_beyond_windows": memory.far_bytes_per_token(model, number),
        "indexer_bytes_per_token": memory.indexer_bytes_per_token(model),
        "state_bytes_per_sequence": memory.state_bytes_per_sequence(model),
        "published_formula": {
            "formula": FORMULA,
            "layers": formula.layers,
            "heads": formula.heads,
            "head_dim": formula.head_dim,
            "bytes_per_token": formula.bytes_per_token,
            "overstates": formula.factor,
            "overstates_with_hidden_over_heads": formula.hidden_factor,
        },
        "settings": {
            "max_num_batched_tokens": server.settings.max_num_batched_tokens,
            "max_num_seqs": server.settings.max_num_seqs,
            "max_model_len": server.settings.max_model_len,
            "block_size": server.settings.block_size,
            "enable_chunked_prefill": server.settings.enable_chunked_prefill,
            "scheduler_version": server.settings.scheduler_version,
            "tensor_parallel_size": server.tensor_parallel,
            "gpu_memory_utilization": server.utilization,
        },
    }


def _kind(layer: Layer) -> str:
    """How a layer looks back, in one word."""
    far = [cache for cache in layer.caches if cache.window is None]
    if far:
        return "full" if all(cache.stride == 1 for cache in far) else "compressed"
    return "windowed" if layer.caches else "state" if layer.state_bytes else "without attention"


def _pool(server: Deployment, asked: Question) -> dict[str, Any]:
    started = start_up(server)
    found: dict[str, Any] = {
        "device_bytes": server.total_bytes,
        "memory": [
            {"what": term.name, "bytes": int(term.size.likely), "low": int(term.size.low), "high": int(term.size.high)}
            | {"why": term.why}
            for term in started.terms
        ],
        "activation_bytes": int(started.terms[1].size.likely),
        "evidence": server.version.evidence,
        "kv_bytes": started.kv_bytes,
        "kv_blocks": started.kv_blocks,
        "kv_tokens": started.kv_tokens,
        "kv_tokens_range": [started.low, started.high],
        "max_concurrency": started.sequences,
        "sequences_at": {},
    }
    pool = started.kv_blocks * server.settings.block_size * server.token_bytes
    longest = server.settings.max_model_len
    lengths = {each for each in (1024, 4096, 16_384, 65_536) if each < longest} | {longest}
    found["sequences_at"] = {str(length): sequences_of(server, pool, length) for length in sorted(lengths)}
    if asked.prompt_tokens is not None and asked.output_tokens is not None:
        held = asked.prompt_tokens + asked.output_tokens // 2
        fit = sequences_of(server, pool, held)
        found["traffic"] = {
            "prompt_tokens": asked.prompt_tokens,
            "output_tokens": asked.output_tokens,
            "held_tokens": held,
            "sequences_that_fit": fit,
            "sequences_that_run": min(fit, server.settings.max_num_seqs),
        }
    return found


def _limit(limit: Limit) -> dict[str, Any]:
    def reason(found: tuple[str, str] | None) -> dict[str, str] | None:
        return None if found is None else {"rule": found[0], "why": found[1]}

    return {
        "flag": limit.flag,
        "value": limit.value,
        "least": limit.least,
        "most": limit.most,
        "below": reason(limit.below),
        "above": reason(limit.above),
    }


def _roofline(server: Deployment, device: Device, sized: Mapping[str, Any]) -> dict[str, Any]:
    kind = "fp4" if "fp4" in server.storage.name else "fp8" if "fp8" in server.storage.name else "bf16"
    # Weights of few bits are multiplied in 16 bits where the device has no such products.
    peak = device.peak(kind) or device.peak("bf16")
    found: dict[str, Any] = {
        "device": device.name,
        "memory": _figure(device.memory),
        "bandwidth_bytes_per_s": _figure(device.bandwidth),
        "peak_flops_per_s": _figure(peak),
        "peak_of": kind if device.peak(kind) else "bf16",
        "ceilings": [],
    }
    if device.bandwidth is None or peak is None:
        found["missing"] = f"the table has no bandwidth or peak of {device.name}: no ceilings"
        return found
    fits = int(sized.get("max_concurrency") or 0)
    seats = server.settings.max_num_seqs
    context = (sized.get("traffic") or {}).get("held_tokens", 1024)
    rows = {1: "one sequence", 8: "", 32: "", seats: "--max-num-seqs"}
    ceilings = []
    for batch in sorted(rows):
        work = step_work(
            server.model,
            server.stored.of,
            server.kv_number,
            decodes=batch,
            context=context,
            tensor_parallel=server.tensor_parallel,
        )
        seconds = work.seconds(peak.value, device.bandwidth.value)
        ceilings.append(
            {
                "step": f"decode {batch} sequences of {context} tokens",
                "tokens": batch,
                "flops": work.flops,
                "bytes": work.weight_bytes + work.kv_bytes,
                "seconds": seconds,
                "tokens_per_s": batch / seconds,
                "bound": "bytes"
                if work.flops / peak.value < work.weight_bytes / device.bandwidth.value
                else "products",
            }
        )
    budget = server.settings.max_num_batched_tokens
    work = step_work(
        server.model, server.stored.of, server.kv_number, prompt=budget, tensor_parallel=server.tensor_parallel
    )
    seconds = work.seconds(peak.value, device.bandwidth.value)
    ceilings.append(
        {
            "step": f"prefill {budget} tokens",
            "tokens": budget,
            "flops": work.flops,
            "bytes": work.weight_bytes + work.kv_bytes,
            "seconds": seconds,
            "tokens_per_s": budget / seconds,
            "bound": "bytes" if work.flops / peak.value < work.weight_bytes / device.bandwidth.value else "products",
        }
    )
    found["ceilings"] = ceilings
    one = step_work(server.model, server.stored.of, server.kv_number, decodes=1, tensor_parallel=server.tensor_parallel)
    found["balance_tokens"] = (one.weight_bytes / device.bandwidth.value) / (one.flops / peak.value)
    found["sequences_that_fit"] = fits
    return found


def _figure(figure: Figure | None) -> dict[str, Any] | None:
    return None if figure is None else {"value": figure.value, "source": figure.source}
