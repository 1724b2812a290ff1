"""One server on one device: how its memory is divided, how many tokens and sequences fit, which rules it breaks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

from headrace.errors import ConfigError
from headrace.sizing import memory
from headrace.sizing.architectures import Model
from headrace.sizing.hardware import GIB
from headrace.sizing.rules import violations
from headrace.sizing.settings import MemoryFacts, ServeSettings, Violation
from headrace.sizing.vllm import Span, Version, activation
from headrace.sizing.weights import DTYPE_BYTES, Storage, StoredWeights

KV_DTYPES = ("auto", "bfloat16", "float16", "float32", "fp8", "fp8_e4m3", "fp8_e5m2", "fp8_ds_mla")


def kv_number_bytes(name: str, dtype: str, model: Model) -> Fraction:
    """Bytes of one number in the KV cache: `auto` is the model's dtype, `fp8_ds_mla` packs scales among the numbers."""
    if name not in KV_DTYPES:
        raise ConfigError(f"--kv-cache-dtype {name!r} is not known; known: {', '.join(KV_DTYPES)}")
    if name == "auto":
        return Fraction(DTYPE_BYTES[dtype])
    if name == "fp8_ds_mla":
        widths = {cache.key for layer in model.layers for cache in layer.caches if cache.heads and not cache.value}
        # FlashMLA: 512 fp8, 4 float32 scales and 64 bfloat16 of a rotated key; of DeepSeek V4, 448, 8 and 64.
        packed = {576: 656, 512: 584}
        if len(widths) != 1 or (width := widths.pop()) not in packed:
            raise ConfigError("--kv-cache-dtype fp8_ds_mla is for models with latent attention (MLA) only")
        return Fraction(packed[width], width)
    return Fraction(1 if name.startswith("fp8") else DTYPE_BYTES[name])


@dataclass(frozen=True, slots=True)
class Deployment:
    """A model, its weights as they are stored, and the settings of the server.

    settings        the scheduler's; its kv_tokens is ignored and computed here
    total_bytes     of one device, as the driver reports it; None: no device is known
    kv_dtype        one of KV_DTYPES
    blocks, kv_memory_bytes   overrides that bypass the profile run (--num-gpu-blocks-override, --kv-cache-memory-bytes)
    """

    model: Model
    stored: StoredWeights
    settings: ServeSettings
    version: Version
    total_bytes: int | None = None
    utilization: float = 0.9
    tensor_parallel: int = 1
    kv_dtype: str = "auto"
    blocks: int | None = None
    kv_memory_bytes: int | None = None

    @property
    def storage(self) -> Storage:
        return self.stored.storage

    @property
    def kv_number(self) -> Fraction:
        return kv_number_bytes(self.kv_dtype, self.storage.dtype, self.model)

    @property
    def token_bytes(self) -> int:
        """KV cache and index of one token on one rank, all layers."""
        keys = memory.kv_bytes_per_token(self.model, self.kv_number, self.tensor_parallel)
        return keys + memory.indexer_bytes_per_token(self.model)

    @property
    def weights(self) -> int:
        """Bytes of one rank's weights."""
        return self.stored.per_rank(self.tensor_parallel)


@dataclass(frozen=True, slots=True)
class Term:
    """A part of the device's memory, in bytes."""

    name: str
    size: Span
    why: str


@dataclass(frozen=True, slots=True)
class StartUp:
    """How a server starts on one device.

    terms        what is spent before the KV cache, in order
    kv_bytes     left for the KV cache; blocks and tokens follow from it (vLLM prints blocks * block_size)
    low, high    tokens at the ends of what is known about the terms
    sequences    how many sequences of max_model_len fit at once, as vLLM's "Maximum concurrency"
    """

    terms: tuple[Term, ...]
    kv_bytes: int
    kv_blocks: int
    kv_tokens: int
    low: int
    high: int
    sequences: float


def start_up(server: Deployment) -> StartUp:
    """Divide the device's memory.  Needs `total_bytes` or one of the overrides; ConfigError otherwise."""
    terms = _terms(server)
    if server.kv_memory_bytes is not None:
        pool = Span(*[server.kv_memory_bytes] * 3)
    elif server.blocks is not None:
        pool = Span(*[server.blocks * _block_bytes(server)] * 3)
    elif server.total_bytes is None:
        raise ConfigError("the KV cache cannot be sized without a device: give --gpu or --memory")
    else:
        budget = server.total_bytes * server.utilization
        pool = Span(
            budget - sum(term.size.high for term in terms),
            budget - sum(term.size.likely for term in terms),
            budget - sum(term.size.low for term in terms),
        )
    block, size = _block_bytes(server), server.settings.block_size
    blocks = max(0, int(pool.likely // block))
    return StartUp(
        terms,
        max(0, int(pool.likely)),
        blocks,
        blocks * size,
        max(0, int(pool.low // block)) * size,
        max(0, int(pool.high // block)) * size,
        sequences_of(server, blocks * block, server.settings.max_model_len),
    )


def sequences_of(server: Deployment, pool_bytes: int, length: int) -> float:
    """How many sequences of `length` tokens the pool holds, each in whole blocks, windows and states as they are."""
    if length < 1:
        return 0.0
    held = memory.sequence_bytes(
        server.model,
        length,
        server.kv_number,
        block_size=server.settings.block_size,
        step_tokens=server.settings.max_num_batched_tokens,
        tensor_parallel=server.tensor_parallel,
    )
    return pool_bytes / held


def _block_bytes(server: Deployment) -> int:
    return server.settings.block_size * server.token_bytes


def _terms(server: Deployment) -> tuple[Term, ...]:
    weights, settings = server.weights, server.settings
    ranks = f" / {server.tensor_parallel} ranks" if server.tensor_parallel > 1 else ""
    peak = activation(
        server.model,
        server.version,
        settings.max_num_batched_tokens,
        settings.max_num_seqs,
        DTYPE_BYTES[server.storage.dtype],
        server.tensor_parallel,
    )
    forward = memory.forward_bytes(
        server.model, settings.max_num_batched_tokens, DTYPE_BYTES[server.storage.dtype], server.tensor_parallel
    )
    is_forward = forward >= peak.likely - server.version.base.likely
    bound = (
        f"{settings.max_num_batched_tokens} tokens in one step"
        if is_forward
        else f"{settings.max_num_seqs} sampled rows"
    )
    return (
        Term("weights", Span(weights, weights, weights), f"{server.storage.name}{ranks}"),
        Term("start-up peak", peak, f"bound by {bound}"),
        Term("other", server.version.other[server.tensor_parallel > 1], "libraries and communication outside of torch"),
    )


def judged(server: Deployment) -> tuple[Violation, ...]:
    """The rules that the server breaks, with the memory that its own settings leave."""
    if server.total_bytes is None and server.blocks is None and server.kv_memory_bytes is None:
        return violations(server.settings)
    started = start_up(server)
    settings = replace(server.settings, kv_tokens=_tokens_for_one(server, started))
    total = server.total_bytes or 0
    facts = MemoryFacts(
        free_bytes=total,
        total_bytes=total,
        utilization=server.utilization,
        kv_bytes_per_token=server.token_bytes,
        budget=tuple((term.name, int(term.size.likely)) for term in started.terms),
        device="cuda",
    )
    return violations(settings, facts if server.total_bytes is not None else None)


def _tokens_for_one(server: Deployment, started: StartUp) -> int:
    """The longest sequence that fits alone: more than the pool's tokens where layers have windows."""
    if started.kv_tokens == 0 or started.sequences >= 1:
        return max(started.kv_tokens, server.settings.max_model_len if started.sequences >= 1 else 0)
    low, high, pool = 0, server.settings.max_model_len, started.kv_blocks * _block_bytes(server)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if sequences_of(server, pool, middle) >= 1 else (low, middle)
    return low


def gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"
