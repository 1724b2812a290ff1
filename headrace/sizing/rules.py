"""Which combinations of serving parameters are legal, and what each refusal says.

Decidable before anything is launched: rules R1 to R8 from flags and the model's config alone, R9 to R12 with a
memory estimate.  Both the server (which refuses to start) and a campaign (which marks the cell illegal) ask here.
R13 concerns one request, not a configuration: `headrace.sizing.context.context_limit_message`.

The messages are vLLM's where its wording is known, so that a search for one finds the same advice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from headrace.sizing.context import AUTO_MAX_MODEL_LEN, fit_max_model_len
from headrace.sizing.memory_rules import memory_violations
from headrace.sizing.settings import BUDGET, LENGTH, SEATS, MemoryFacts, ServeSettings, Violation

__all__ = ["MemoryFacts", "ServeSettings", "Violation", "errors", "explain", "violations"]

SCHEDULING_POLICIES = ("fcfs", "priority")
SCHEDULER_VERSIONS = ("v0", "v1")


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
    found += memory_violations(settings, memory)
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


_SCHEDULER_RULES: tuple[Callable[[ServeSettings], Iterator[Violation]], ...] = (
    _r1_whole_prompts,
    _r2_one_token_a_seat,
    _r3_idle_budget,
    _r4_chunks_of_whole_blocks,
    _r5_partial_prefills_need_chunks,
    _r6_long_prefills,
)
