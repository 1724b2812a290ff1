"""What the rules of legality judge: the settings of one server, the device's memory, and a broken rule."""

from __future__ import annotations

from dataclasses import dataclass

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
