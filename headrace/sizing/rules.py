"""Which combinations of serving parameters are legal, and what each refusal says.

Decidable before anything is launched: rules R1 to R8 from flags and the model's config alone, R9 to R12 with a
memory estimate.  Both the server (which refuses to start) and a campaign (which marks the cell illegal) ask here.
R13 concerns one request, not a configuration: `headrace.sizing.context.context_limit_message`.

The messages are vLLM's where its wording is known, so that a search for one finds the same advice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from headrace.sizing.context import AUTO_MAX_MODEL_LEN, fit_max_model_len

GIB = 1 << 30

SCHEDULING_POLICIES = ("fcfs", "priority")
SCHEDULER_VERSIONS = ("v0", "v1")

BUDGET, SEATS, LENGTH = "--max-num-batched-tokens", "--max-num-seqs", "--max-model-len"


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """Resolved scheduler-related settings of one server (vLLM's names; no "auto" left).

    scheduler_version        "v1" or "v0": which generation of vLLM's scheduler is meant
    max_model_len            longest sequence, prompt + output; -1 = fit it to the KV cache (rule R14)
    kv_tokens                capacity of the KV cache in tokens when it is known, else None
    long_prefill_token_threshold   0 = no cap
    """

    max_num_batched_tokens: int
    max_num_seqs: int
    max_model_len: int
    enable_chunked_prefill: bool = True
    scheduler_version: str = "v1"
    block_size: int = 16
    enable_prefix_caching: bool = False
    scheduling_policy: str = "fcfs"
    long_prefill_token_threshold: int = 0
    max_num_partial_prefills: int = 1
    max_long_partial_prefills: int = 1
    kv_tokens: int | None = None

    @property
    def policy(self) -> str:
        """The scheduler policy's name: v1, v1-whole, v0-chunked or v0."""
        if self.scheduler_version == "v1":
            return "v1" if self.enable_chunked_prefill else "v1-whole"
        return "v0-chunked" if self.enable_chunked_prefill else "v0"


@dataclass(frozen=True, slots=True)
class MemoryFacts:
    """What is known of the device's memory before weights load; everything in bytes.

    free_bytes, total_bytes   of the device, before this server takes any
    utilization               the share of the total that the server may use (--gpu-memory-utilization)
    kv_bytes_per_token        K and V of one token over all layers
    budget                    what the server's share is spent on, in order: (what, bytes)
    """

    free_bytes: int
    total_bytes: int
    utilization: float
    kv_bytes_per_token: int | None = None
    budget: tuple[tuple[str, int], ...] = ()
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken rule.

    rule      "R1" ... "R14"
    severity  "error" (the server must not start) or "warning"
    flag      the flag at fault, e.g. "--max-num-batched-tokens"
    value, bound   the value it has and the bound that it breaks (as text for the user)
    message   vLLM's wording where it is known
    fix       one sentence: what would make it legal
    """

    rule: str
    severity: str
    flag: str
    value: str
    bound: str
    message: str
    fix: str


def violations(settings: ServeSettings, memory: MemoryFacts | None = None) -> tuple[Violation, ...]:
    """Every rule that `settings` breaks, in the order of the rules; empty when the combination is legal.

    Values that are no sizes at all (R7), unknown names (R8) and a length that cannot be fitted (R14) are reported
    alone: bounds computed from them would mean nothing.
    """
    nonsense = (*_r7_sizes(settings), *_r8_names(settings), *_r14_auto_length(settings))
    if nonsense:
        return nonsense
    if settings.max_model_len == AUTO_MAX_MODEL_LEN:
        assert settings.kv_tokens is not None  # R14 saw to it
        settings = replace(
            settings, max_model_len=fit_max_model_len(None, settings.kv_tokens, block_size=settings.block_size)
        )
    found = [violation for rule in _SCHEDULER_RULES for violation in rule(settings)]
    found += _memory_rules(settings, memory)
    return tuple(found)


def errors(found: tuple[Violation, ...]) -> tuple[Violation, ...]:
    """Those violations that forbid a start."""
    return tuple(violation for violation in found if violation.severity == "error")


def explain(violation: Violation) -> str:
    """The violation as one sentence: the flag, its value, the bound, and what would make it legal."""
    fix = violation.fix.rstrip(".")
    return (
        f"{violation.rule}: {violation.flag} is {violation.value} but must be {violation.bound}; "
        f"{fix[0].lower() + fix[1:]}."
    )


def _r1_whole_prompts(s: ServeSettings) -> Iterator[Violation]:
    """Without chunks a prompt of the longest legal length must fit one step, or it could never be admitted."""
    budget, length = s.max_num_batched_tokens, s.max_model_len
    if not s.enable_chunked_prefill and budget < length:
        yield Violation(
            "R1",
            "error",
            BUDGET,
            str(budget),
            f"at least {length} (the value of {LENGTH}) while chunked prefill is off",
            f"max_num_batched_tokens ({budget}) is smaller than max_model_len ({length}). This effectively limits the "
            "maximum sequence length to max_num_batched_tokens and makes vLLM reject longer sequences. Please "
            "increase max_num_batched_tokens or decrease max_model_len.",
            f"Raise {BUDGET} from {budget} to at least {length}, lower {LENGTH} from {length} to at most {budget}, "
            "or switch chunked prefill on.",
        )


def _r2_one_token_a_seat(s: ServeSettings) -> Iterator[Violation]:
    """A step in which every running sequence decodes needs one token each."""
    budget, seats = s.max_num_batched_tokens, s.max_num_seqs
    if budget < seats:
        yield Violation(
            "R2",
            "error",
            BUDGET,
            str(budget),
            f"at least {seats} (the value of {SEATS})",
            f"max_num_batched_tokens ({budget}) must be greater than or equal to max_num_seqs ({seats}).",
            f"Raise {BUDGET} from {budget} to at least {seats}, or lower {SEATS} from {seats} to at most {budget}.",
        )


def _r3_idle_budget(s: ServeSettings) -> Iterator[Violation]:
    """Newer versions warn of a budget that no set of running sequences can use."""
    budget, most = s.max_num_batched_tokens, s.max_num_seqs * s.max_model_len
    if s.scheduler_version == "v1" and budget > most:
        yield Violation(
            "R3",
            "warning",
            BUDGET,
            str(budget),
            f"at most {most} ({SEATS} x {LENGTH}) to be of use",
            f"max_num_batched_tokens ({budget}) exceeds max_num_seqs * max_model_len ({most}). This may lead to "
            "unexpected behavior.",
            f"Lower {BUDGET} from {budget} to at most {most}: {s.max_num_seqs} sequences of {s.max_model_len} tokens "
            "cannot use more.",
        )


def _r4_chunks_of_whole_blocks(s: ServeSettings) -> Iterator[Violation]:
    """V0 fails while it runs: with a prefix cache its chunks must end at a block's border."""
    budget, block = s.max_num_batched_tokens, s.block_size
    rest = budget % block
    if s.scheduler_version == "v0" and s.enable_chunked_prefill and s.enable_prefix_caching and rest:
        near = f"{budget - rest} or {budget - rest + block}" if budget > block else str(block)
        yield Violation(
            "R4",
            "error",
            BUDGET,
            str(budget),
            f"a multiple of {block} (the value of --block-size) with scheduler v0, chunked prefill and prefix caching",
            "When enabling chunked prefill and prefix caching, max_num_batched_tokens (chunk size) must be dividable "
            f"by block size, but got chunk_size ({budget}) % block_size ({block}) = {rest}",
            f"Change {BUDGET} from {budget} to {near}, or switch prefix caching or chunked prefill off.",
        )


def _r5_partial_prefills_need_chunks(s: ServeSettings) -> Iterator[Violation]:
    if s.max_num_partial_prefills > 1 and not s.enable_chunked_prefill:
        yield Violation(
            "R5",
            "error",
            "--max-num-partial-prefills",
            str(s.max_num_partial_prefills),
            "at most 1 while chunked prefill is off",
            "Chunked prefill must be enabled to set max_num_partial_prefills > 1.",
            f"Lower --max-num-partial-prefills from {s.max_num_partial_prefills} to 1, or switch chunked prefill on.",
        )


def _r6_long_prefills(s: ServeSettings) -> Iterator[Violation]:
    threshold, length = s.long_prefill_token_threshold, s.max_model_len
    if threshold > length:
        yield Violation(
            "R6",
            "error",
            "--long-prefill-token-threshold",
            str(threshold),
            f"at most {length} (the value of {LENGTH})",
            f"long_prefill_token_threshold ({threshold}) cannot be greater than the max_model_len ({length}).",
            f"Lower --long-prefill-token-threshold from {threshold} to at most {length}.",
        )
    long, partial = s.max_long_partial_prefills, s.max_num_partial_prefills
    if long > partial:
        yield Violation(
            "R6",
            "error",
            "--max-long-partial-prefills",
            str(long),
            f"at most {partial} (the value of --max-num-partial-prefills)",
            f"max_long_partial_prefills ({long}) must be greater than or equal to 1 and less than or equal to "
            f"max_num_partial_prefills ({partial}).",
            f"Lower --max-long-partial-prefills from {long} to at most {partial}, or raise --max-num-partial-prefills.",
        )


def _r7_sizes(s: ServeSettings) -> Iterator[Violation]:
    sizes = {
        BUDGET: s.max_num_batched_tokens,
        SEATS: s.max_num_seqs,
        "--block-size": s.block_size,
        "--max-num-partial-prefills": s.max_num_partial_prefills,
        "--max-long-partial-prefills": s.max_long_partial_prefills,
    }
    if s.max_model_len != AUTO_MAX_MODEL_LEN:
        sizes[LENGTH] = s.max_model_len
    least = {**dict.fromkeys(sizes, 1), "--long-prefill-token-threshold": 0}
    for flag, size in {**sizes, "--long-prefill-token-threshold": s.long_prefill_token_threshold}.items():
        if size < least[flag]:
            yield Violation(
                "R7",
                "error",
                flag,
                str(size),
                f"at least {least[flag]}",
                f"{flag.removeprefix('--').replace('-', '_')}: Input should be greater than or equal to {least[flag]}",
                f"Raise {flag} from {size} to at least {least[flag]}.",
            )


def _r8_names(s: ServeSettings) -> Iterator[Violation]:
    if s.scheduling_policy not in SCHEDULING_POLICIES:
        yield Violation(
            "R8",
            "error",
            "--scheduling-policy",
            s.scheduling_policy,
            f"one of {', '.join(SCHEDULING_POLICIES)}",
            f"Unknown scheduling policy: {s.scheduling_policy}",
            f"Change --scheduling-policy from {s.scheduling_policy} to one of {', '.join(SCHEDULING_POLICIES)}.",
        )
    if s.scheduler_version not in SCHEDULER_VERSIONS:
        yield Violation(
            "R8",
            "error",
            "--scheduler-version",
            s.scheduler_version,
            f"one of {', '.join(SCHEDULER_VERSIONS)}",
            f"Unknown scheduler version: {s.scheduler_version}",
            f"Change --scheduler-version from {s.scheduler_version} to one of {', '.join(SCHEDULER_VERSIONS)}.",
        )


def _r14_auto_length(s: ServeSettings) -> Iterator[Violation]:
    """`auto` asks for the longest sequence that the KV cache can hold: its size must be known, and not nothing."""
    if s.max_model_len == AUTO_MAX_MODEL_LEN and s.kv_tokens is None:
        yield Violation(
            "R14",
            "error",
            LENGTH,
            "auto (-1)",
            "a number of tokens while the size of the KV cache is not known",
            "max_model_len cannot be fitted: the size of the KV cache is not known.",
            f"Give {LENGTH} as a number, or give the size of the KV cache (--num-gpu-blocks-override).",
        )


def _memory_rules(s: ServeSettings, memory: MemoryFacts | None) -> Iterator[Violation]:
    """R12 before R11 before R9/R10: each makes the next one moot, so at most one of them is reported."""
    if memory is not None and memory.free_bytes < memory.utilization * memory.total_bytes:
        yield _r12_device_in_use(memory)
    elif s.kv_tokens is not None and s.kv_tokens < s.block_size:
        yield _r11_no_blocks(memory)
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


def _r11_no_blocks(memory: MemoryFacts | None) -> Violation:
    spent = ", ".join(f"{what} {_gib(size)}" for what, size in memory.budget) if memory else ""
    utilization = f"{memory.utilization:g}" if memory else "too low"
    return Violation(
        "R11",
        "error",
        "--gpu-memory-utilization",
        utilization,
        "high enough to leave one block of KV cache" + (f" after {spent}" if spent else ""),
        "No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing the "
        "engine.",
        "Raise --gpu-memory-utilization"
        + (f" from {utilization} to at most 1" if memory else " to at most 1")
        + f", or lower {BUDGET} or {SEATS}, which need memory of their own.",
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


_SCHEDULER_RULES: tuple[Callable[[ServeSettings], Iterator[Violation]], ...] = (
    _r1_whole_prompts,
    _r2_one_token_a_seat,
    _r3_idle_budget,
    _r4_chunks_of_whole_blocks,
    _r5_partial_prefills_need_chunks,
    _r6_long_prefills,
)
