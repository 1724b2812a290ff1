"""From declared flags to one resolved, frozen configuration that is stored with every result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Everything resolved: "auto" never survives into this object.

    model            directory of the model, or "demo" for the built-in one
    served_model_names   names that the API accepts (the first is the one it answers with)
    scheduler_version    "v1" or "v0"; with `enable_chunked_prefill` it names the scheduler's policy
    num_kv_blocks    usable blocks of `block_size` tokens
    dtype            "float32" or "bfloat16"
    load_format      "safetensors" or "dummy" (random weights from `seed`)
    generation_config  "auto" applies the model's own sampling defaults, "vllm" ignores them
    """

    model: str
    served_model_names: tuple[str, ...]
    tokenizer: str
    dtype: str
    load_format: str
    seed: int
    max_model_len: int
    max_num_batched_tokens: int
    max_num_seqs: int
    block_size: int
    num_kv_blocks: int
    enable_chunked_prefill: bool
    scheduler_version: str
    scheduling_policy: str
    enable_prefix_caching: bool
    long_prefill_token_threshold: int
    num_threads: int
    generation_config: str
    chat_template: str | None
    model_path: Path | None

    @property
    def policy(self) -> str:
        """v1, v1-whole, v0-chunked or v0."""
        if self.scheduler_version == "v1":
            return "v1" if self.enable_chunked_prefill else "v1-whole"
        return "v0-chunked" if self.enable_chunked_prefill else "v0"
