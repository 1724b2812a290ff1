"""How long a sequence may be: fitting the limit to the KV cache, and the words for a request that exceeds it."""

from __future__ import annotations

AUTO_MAX_MODEL_LEN = -1
"""`--max-model-len auto` (or -1): as long as the model and the KV cache allow (rule R14)."""

WORDINGS = ("new", "old")


def fit_max_model_len(model_max_len: int | None, kv_tokens: int, *, block_size: int = 16) -> int:
    """The largest legal `--max-model-len` in tokens: one sequence of it fits the KV cache and the model.

    A sequence owns whole blocks, so the tail of the pool below one block is of no use.  The result is 0 when not
    even one block fits (rule R11).  `model_max_len` None: the model sets no limit.
    """
    fit = max(kv_tokens, 0) // block_size * block_size
    return fit if model_max_len is None else min(model_max_len, fit)


def context_limit_message(
    max_model_len: int, prompt_tokens: int, max_tokens: int | None, *, wording: str = "new", chat: bool = True
) -> str:
    """What a server says to a request longer than `max_model_len` (rule R13, HTTP 400).

    vLLM has used two wordings; clients search for both, so each is kept word for word.  `max_tokens` None: the
    request set no limit, and its prompt alone is too long.  `chat` names the prompt "messages" where the old wording
    does.  Raises ValueError for an unknown `wording`.
    """
    if wording not in WORDINGS:
        raise ValueError(f"wording must be one of {', '.join(WORDINGS)}, not {wording!r}")
    output = max_tokens or 0
    total = prompt_tokens + output
    head = f"This model's maximum context length is {max_model_len} tokens. However, you requested "
    where = "messages" if chat else "prompt"
    if wording == "old":
        return (
            f"{head}{total} tokens ({prompt_tokens} in the {where}, {output} in the completion). "
            f"Please reduce the length of the {where} or completion."
        )
    return (
        f"{head}{output} output tokens and your prompt contains at least {prompt_tokens} input tokens, for a total of "
        f"at least {total} tokens. Please reduce the length of the input prompt or the number of requested output "
        "tokens."
    )
