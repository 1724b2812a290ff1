"""Log-probabilities of prompts, from the forward pass that computes the prompt anyway."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from headrace.core.batch import Chunk
from headrace.engine.kernels import native, sampling
from headrace.engine.masks import state_of
from headrace.engine.outputs import TokenLogprob

# Rows whose logits exist at once: 64 of a vocabulary of 150,000 are 38 MB in fp32, and the same again normalised.
ROWS_AT_ONCE = 64


def wants_prompt(chunk: Chunk) -> bool:
    """Whether the chunk computes positions whose prompt log-probabilities are not known yet."""
    sequence = chunk.sequence
    params = sequence.request.params
    return (
        params.scores_prompt
        and params.prompt_logprob_start + len(state_of(sequence).prompt_logprobs) < sequence.num_prompt_tokens - 1
    )


def collect(chunk: Chunk, hidden: Tensor, head: Callable[[Tensor], Tensor]) -> None:
    """Add what `chunk` tells about its prompt to the sequence's sampling state.

    `hidden` `[chunk.length, hidden_size]` are its rows in order of position; `head` makes logits of them.  Position p
    predicts the token at p + 1, so the first token of a prompt has no log-probability, and the last position belongs to
    the output.
    """
    sequence, start, length, *_ = chunk
    known = state_of(sequence).prompt_logprobs
    params = sequence.request.params
    origin, number = params.prompt_logprob_start, params.prompt_logprobs or 0
    # Not from `start`: after a preemption the prompt is computed again, but told once.
    first, last = origin + len(known), min(start + length, sequence.num_prompt_tokens - 1)
    for begin in range(first, last, ROWS_AT_ONCE):
        end = min(begin + ROWS_AT_ONCE, last)
        logits = head(hidden[begin - start : end - start])
        found = describe(logits, sequence.tokens_between(begin + 1, end + 1), [number] * (end - begin))
        if (ids := params.prompt_logprob_token_ids) is not None:
            found = [named(one, logits[i], ids[begin + i - origin]) for i, one in enumerate(found)]
        known += found


def named(one: TokenLogprob, logits: Tensor, ids: Sequence[int]) -> TokenLogprob:
    """`one`, a token of the row `logits` `[vocab]`, with log-probabilities of `ids` for its alternatives, in their
    order; -inf for an id that is negative."""
    # The row's normaliser is what the token itself lost to it.
    below = float(logits[one.token_id]) - one.logprob
    values = logits[[max(token, 0) for token in ids]].tolist() if ids else []
    told = (value - below if token >= 0 else -math.inf for token, value in zip(ids, values, strict=True))
    return replace(one, top=tuple(zip(ids, told, strict=True)))


def describe(logits: Tensor, tokens: Sequence[int], numbers: Sequence[int]) -> list[TokenLogprob]:
    """Log-probability, rank and `numbers[i]` alternatives of `tokens[i]` in row i of fp32 `logits` `[rows, vocab]`."""
    if (module := native()) is not None:
        return sampling.describe(module, logits, tokens, numbers)
    return describe_with_torch(logits, tokens, numbers)


def describe_with_torch(logits: Tensor, tokens: Sequence[int], numbers: Sequence[int]) -> list[TokenLogprob]:
    """The twin of `kernels.sampling.describe`."""
    rows = torch.log_softmax(logits, dim=-1)
    chosen = rows.gather(1, torch.tensor(tokens).unsqueeze(1))
    ranks = ((rows > chosen).sum(dim=-1) + 1).tolist()
    top = rows.topk(min(max(numbers), rows.shape[-1]), dim=-1)
    ids, values, own = top.indices.tolist(), top.values.tolist(), chosen.squeeze(1).tolist()
    return [
        TokenLogprob(
            token_id=token,
            logprob=own[i],
            rank=ranks[i],
            top=tuple(zip(ids[i][: numbers[i]], values[i][: numbers[i]], strict=True)),
        )
        for i, token in enumerate(tokens)
    ]
