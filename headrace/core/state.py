"""What the policies read and write: configuration, queues, blocks, counters, and the step under construction."""

from __future__ import annotations

from dataclasses import dataclass, field

from headrace.core.batch import Chunk
from headrace.core.blocks import BlockManager
from headrace.core.queues import FcfsQueue, PriorityQueue, WaitingQueue
from headrace.core.request import FinishReason
from headrace.core.sequence import Phase, Sequence
from headrace.core.speculation import Speculation
from headrace.errors import ConfigError

POLICY_NAMES = ("v1", "v1-whole", "v0", "v0-chunked")
HASH_AT = ("plan", "after_plan", "after_step")
_LEAST = {
    "max_num_batched_tokens": 1,
    "max_num_seqs": 1,
    "max_model_len": 1,
    "block_size": 1,
    "num_blocks": 1,
    "long_prefill_token_threshold": 0,
}


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Everything that decides about scheduling; ConfigError names the field at fault.

    policy                   v1, v1-whole (chunked prefill off), v0 (prefill first), v0-chunked
    max_num_batched_tokens   tokens one step may compute (T)
    max_num_seqs             requests that may be running (S)
    max_model_len            longest sequence, prompt and output (L)
    block_size, num_blocks   tokens in a KV block; usable blocks, ids 0 .. num_blocks - 1
    long_prefill_token_threshold   most tokens one request may get in one step, 0 = no cap (V1 policies)
    scheduling_policy        order of the waiting queue: fcfs or priority
    reserve_full             V1: admit only when the whole current sequence fits, not only its first chunk
    watermark                share of blocks kept free at admission; None = the policy's own (V0 0.01, V1 0)
    hash_at                  when a block becomes findable: plan, after_plan or after_step; None = the policy's own
                             (V1 plan: an identical prompt admitted later in the same step already hits; V0 after_plan)
    speculation              how tokens are guessed ahead of the model, or None: not at all
    """

    policy: str = "v1"
    max_num_batched_tokens: int = 2048
    max_num_seqs: int = 256
    max_model_len: int = 2048
    block_size: int = 16
    num_blocks: int = 1024
    enable_prefix_caching: bool = False
    long_prefill_token_threshold: int = 0
    scheduling_policy: str = "fcfs"
    reserve_full: bool = True
    watermark: float | None = None
    hash_at: str | None = None
    speculation: Speculation | None = None

    def __post_init__(self) -> None:
        for name, accepted in (("policy", POLICY_NAMES), ("scheduling_policy", ("fcfs", "priority"))):
            if getattr(self, name) not in accepted:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; use one of {', '.join(accepted)}")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ConfigError(f"{name} is {value!r}; it must be a whole number of at least {least}")
        if self.hash_at is None:
            object.__setattr__(self, "hash_at", "plan" if self.policy.startswith("v1") else "after_plan")
        if self.watermark is None:
            object.__setattr__(self, "watermark", 0.0 if self.policy.startswith("v1") else 0.01)
        if self.hash_at not in HASH_AT:
            raise ConfigError(f"hash_at is {self.hash_at!r}; use one of {', '.join(HASH_AT)}")
        assert self.watermark is not None
        if not 0.0 <= self.watermark < 1.0:
            raise ConfigError(f"watermark is {self.watermark}; it must be at least 0 and below 1")
        budget, longest = self.max_num_batched_tokens, self.max_model_len
        if budget < self.max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens ({budget}) must be greater than or equal to max_num_seqs ({self.max_num_seqs})"
            )
        threshold = self.long_prefill_token_threshold
        if threshold > longest:
            raise ConfigError(f"long_prefill_token_threshold ({threshold}) must be at most max_model_len ({longest})")
        if threshold and not self.policy.startswith("v1"):
            raise ConfigError(f"long_prefill_token_threshold must be 0 with policy {self.policy}")
        if self.policy == "v1-whole" and budget < longest:
            # A longer prompt would wait for ever, and everybody behind it.  (V0 drops it instead.)
            raise ConfigError(
                f"max_num_batched_tokens ({budget}) must be at least max_model_len ({longest}) without chunked prefill"
            )
        if self.policy == "v0-chunked" and self.enable_prefix_caching and budget % self.block_size:
            raise ConfigError(
                f"max_num_batched_tokens ({budget}) must be a multiple of block_size ({self.block_size}) with policy"
                " v0-chunked and prefix caching"
            )

    @property
    def watermark_blocks(self) -> int:
        """Blocks kept free at admission."""
        return int((self.watermark or 0.0) * self.num_blocks)


@dataclass(slots=True)
class Counters:
    """Totals since the scheduler was made.  Prefix figures are in tokens, counted once per admission.

    failed                                   rows that the model could not compute
    restarts                                 sequences that shared a block with a failed row and began again
    prefix_queries, prefix_hits              at first admissions
    preempted_queries, preempted_hits        at re-admissions after a preemption
    drafts                                   chunks with drafts, of those whose result counted
    draft_tokens, accepted_tokens            drafts in them; those that were right
    accepted_at                              how often the first, second, ... draft of a chunk was right
    """

    preemptions: int = 0
    dropped: int = 0
    failed: int = 0
    restarts: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    preempted_queries: int = 0
    preempted_hits: int = 0
    drafts: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    accepted_at: list[int] = field(default_factory=list)


@dataclass(slots=True)
class NextStep:
    """The step under construction; `left` is what remains of the token budget."""

    left: int
    chunks: list[Chunk] = field(default_factory=list)
    admitted: list[Sequence] = field(default_factory=list)
    preempted: list[Sequence] = field(default_factory=list)
    dropped: list[Sequence] = field(default_factory=list)

    def withdraw(self, sequence: Sequence) -> Chunk | None:
        """Take back the chunk of `sequence`, if it has one."""
        for index, chunk in enumerate(self.chunks):
            if chunk.sequence is sequence:
                del self.chunks[index]
                self.left += chunk.length
                return chunk
        return None


class State:
    """All that a policy may look at: it has no clock, no randomness and no I/O.

    `running` is a list whose order belongs to the policy: it decides who is served first and who is evicted.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.blocks = BlockManager(
            config.num_blocks,
            config.block_size,
            enable_prefix_caching=config.enable_prefix_caching,
            watermark_blocks=config.watermark_blocks,
        )
        self.is_fcfs = config.scheduling_policy == "fcfs"
        self.publish_at_plan = config.enable_prefix_caching and config.hash_at == "plan"
        self.waiting: WaitingQueue = FcfsQueue() if self.is_fcfs else PriorityQueue()
        self.running: list[Sequence] = []
        self.counters = Counters()
        if config.speculation is not None:
            self.counters.accepted_at = [0] * config.speculation.num_speculative_tokens

    def serve(self, step: NextStep, sequence: Sequence, length: int) -> Chunk:
        """Plan the next `length` tokens of `sequence`, whose blocks are there."""
        start = sequence.computed
        end = sequence.computed = start + length
        step.left -= length
        if self.publish_at_plan and end % self.config.block_size < length:
            self.blocks.publish(sequence, end)
        chunk = Chunk(sequence, start, length, end == sequence.num_tokens)
        step.chunks.append(chunk)
        return chunk

    def admit(self, step: NextStep, cached: int) -> Sequence:
        """Move the head of `waiting` into `running`; its first `cached` tokens are in the prefix cache."""
        sequence = self.waiting.pop()
        self.running.append(sequence)
        step.admitted.append(sequence)
        sequence.phase = Phase.RUNNING
        sequence.computed = cached
        sequence.prefill_length = sequence.num_tokens
        if self.blocks.may_hit(sequence):
            # Once per admission: a head of line that is looked up in every step it waits counts once.
            counters = self.counters
            if sequence.num_preemptions:
                counters.preempted_queries += sequence.num_tokens
                counters.preempted_hits += cached
            else:
                counters.prefix_queries += sequence.num_tokens
                counters.prefix_hits += cached
                sequence.num_cached_tokens = cached
        return sequence

    def evict(self, sequence: Sequence) -> Sequence:
        """Preempt by recomputation: all blocks are freed (findable ones stay findable), nothing counts as computed.

        The caller takes it out of `running` and gives it back to `waiting`.
        """
        self.begin_again(sequence)
        self.counters.preemptions += 1
        return sequence

    def begin_again(self, sequence: Sequence) -> None:
        """Take all blocks from a running sequence; it waits, and computes its tokens again."""
        self.blocks.free(sequence)
        sequence.computed = 0
        sequence.phase = Phase.WAITING
        sequence.num_preemptions += 1

    def drop(self, step: NextStep) -> None:
        """End the head of `waiting` as V0 does with what it can never place ("ignored")."""
        sequence = self.waiting.pop()
        sequence.phase = Phase.FINISHED
        sequence.finish_reason = FinishReason.LENGTH
        self.counters.dropped += 1
        step.dropped.append(sequence)
