"""How long a sequence may be: fitting the limit to the KV cache, and the words for a request that exceeds it."""

from __future__ import annotations

AUTO_MAX_MODEL_LEN = -1
"""`--max-model-len auto` (or -1): as long as the model and the KV cache allow (rule R14)."""


def fit_max_model_len(model_max_len: int | None, kv_tokens: int, *, block_size: int = 16) -> int:
    """The largest legal `--max-model-len` in tokens: one sequence of it fits the KV cache and the model.

    A sequence owns whole blocks, so the tail of the pool below one block is of no use.  The result is 0 when not
    even one block fits (rule R11).  `model_max_len` None: the model sets no limit.
    """
    fit = max(kv_tokens, 0) // block_size * block_size
    return fit if model_max_len is None else min(model_max_len, fit)


def context_limit_message(max_model_len: int, prompt_tokens: int, max_tokens: int | None) -> str:
    """What a server says to a request longer than `max_model_len` (rule R13, HTTP 400), in vLLM's words.

    `max_tokens` None: the request set no limit, and its prompt alone is too long.
    """
    head = f"This model's maximum context length is {max_model_len} tokens. However, "
    if max_tokens is None:
        return f"{head}your prompt contains {prompt_tokens} input tokens. Please reduce the length of the input prompt."
    return (
        f"{head}you requested {max_tokens} output tokens and your prompt contains at least {prompt_tokens} input "
        f"tokens, for a total of at least {prompt_tokens + max_tokens} tokens. Please reduce the length of the input "
        "prompt or the number of requested output tokens."
    )
