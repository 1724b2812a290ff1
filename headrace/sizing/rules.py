"""Which combinations of serving parameters are legal, and what each refusal says.

Decidable before anything is launched: rules R1 to R8 from flags and the model's config alone, R9 to R12 with a
memory estimate.  Both the server (which refuses to start) and a campaign (which marks the cell illegal) ask here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """Resolved scheduler-related settings of one server (vLLM's names; no "auto" left).

    scheduler_version        "v1" or "v0": which generation of vLLM's scheduler is meant
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
