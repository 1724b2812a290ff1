"""Tokens from logits without sorting a vocabulary: the native side (cpp/sample.hpp) of sampler and prompt_logprobs."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import numpy as np
from torch import Tensor

from headrace.core.request import SamplingParams
from headrace.engine.outputs import TokenLogprob

GREEDY_BELOW = 1e-5  # vLLM's _SAMPLING_EPS


def choose(
    native: ModuleType, logits: Tensor, params: Sequence[SamplingParams], seeds: Sequence[int], positions: Sequence[int]
) -> list[int]:
    """The next token of each row of fp32 `logits` `[rows, vocab]`; temperature 0 is greedy.

    A row's number is that of (seed, position), as `sampler.uniform` makes it.
    """
    # Below the smallest temperature that is not greedy nothing is left to chance.
    facts = [
        (each.temperature if each.temperature >= GREEDY_BELOW else 0.0, each.top_k, each.top_p, each.min_p)
        for each in params
    ]
    temperatures, top_ks, top_ps, min_ps = zip(*facts, strict=True)
    columns = (
        np.array(temperatures, dtype=np.float32),
        np.array(top_ks, dtype=np.int64),
        np.array(top_ps, dtype=np.float64),
        np.array(min_ps, dtype=np.float32),
        np.array(seeds, dtype=np.uint64),
        np.array(positions, dtype=np.uint64),
    )
    tokens = np.empty(len(params), dtype=np.int64)
    rows, vocab = logits.shape
    addresses = [column.ctypes.data for column in columns]
    native.sample(logits.data_ptr(), logits.stride(0), rows, vocab, *addresses, tokens.ctypes.data)
    chosen: list[int] = tokens.tolist()
    return chosen


def greedy(native: ModuleType, logits: Tensor) -> list[int]:
    """The most likely token of each row, the lowest id among equals."""
    rows, vocab = logits.shape
    zeros = np.zeros(rows, dtype=np.float32)
    tokens = np.empty(rows, dtype=np.int64)
    unread = zeros.ctypes.data
    native.sample(logits.data_ptr(), logits.stride(0), rows, vocab, unread, 0, 0, 0, 0, 0, tokens.ctypes.data)
    chosen: list[int] = tokens.tolist()
    return chosen


def describe(native: ModuleType, logits: Tensor, tokens: Sequence[int], numbers: Sequence[int]) -> list[TokenLogprob]:
    """Log-probability, rank and `numbers[i]` alternatives of `tokens[i]` in row i of fp32 logits `[rows, vocab]`."""
    rows, vocab = logits.shape
    width = min(max(numbers), vocab)
    chosen = np.array(tokens, dtype=np.int64)
    own, ranks = np.empty(rows, dtype=np.float32), np.empty(rows, dtype=np.int64)
    ids, values = np.empty((rows, width), dtype=np.int64), np.empty((rows, width), dtype=np.float32)
    addresses = [array.ctypes.data for array in (own, ranks, ids, values)]
    native.describe(logits.data_ptr(), logits.stride(0), rows, vocab, chosen.ctypes.data, width, *addresses)
    known = zip(tokens, numbers, own.tolist(), ranks.tolist(), ids.tolist(), values.tolist(), strict=True)
    return [
        TokenLogprob(token, logprob, rank, tuple(zip(best[:number], logprobs[:number], strict=True)))
        for token, number, logprob, rank, best, logprobs in known
    ]
