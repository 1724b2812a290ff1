"""Logits -> tokens.

Order, as in vLLM: what a request may not say (masks.py); repetition, frequency and presence penalties; greedy rows take
the most likely token (the lowest id among equals); the others divide by the temperature and apply min-p, top-k, top-p.
The filters keep values equal to their threshold, so no result depends on how a sort breaks ties.  Reported
log-probabilities are of the raw distribution, before all of this.

Ranges (checked by the server): temperature >= 0 (below 1e-5 is greedy), 0 < top_p <= 1, top_k >= 0 (0 = off),
0 <= min_p <= 1, -2 <= presence and frequency penalty <= 2, repetition penalty > 0, logprobs >= 0, 0 <= seed < 2**64.

Randomness: one uniform number a token, a pure function of (seed, position), put through the inverse of the cumulative
distribution in order of token id.  What else is in the batch, a preemption, a restart or speculation cannot change a
sample.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence as Rows
from typing import NamedTuple

import torch
from torch import Tensor

from headrace.core.request import GRAMMAR_FAILED, SamplingParams
from headrace.engine.kernels import native, sampling
from headrace.engine.kernels.sampling import GREEDY_BELOW
from headrace.engine.masks import is_masked, mask
from headrace.engine.outputs import TokenLogprob
from headrace.engine.prompt_logprobs import describe, named
from headrace.engine.structured import GrammarFailure
from headrace.engine.verify import Row

_TOP_CANDIDATES = 1024  # a nucleus wider than this is found by sorting the whole vocabulary
_MASK64 = (1 << 64) - 1


def derive_seed(engine_seed: int, order: int) -> int:
    """The seed of a request that brought none, from the engine's seed and the request's number: the same requests in
    the same order sample the same tokens."""
    digest = hashlib.blake2b(f"{engine_seed}/{order}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) from (seed, position): splitmix64's mixing, 52 bits (Steele, Lea, Flood 2014).

    52 bits and not 53: the largest value times any total stays below that total in fp64.
    """
    mixed = _mix(_mix(seed & _MASK64) + 0x9E3779B97F4A7C15 * (position + 1))
    return (mixed >> 12) / float(1 << 52)


def _mix(z: int) -> int:
    z &= _MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
    return z ^ (z >> 31)


class Sampled(NamedTuple):
    """Tokens in the rows' order; by row, log-probabilities of those who asked, and why others failed."""

    tokens: list[int]
    logprobs: dict[int, TokenLogprob]
    failed: dict[int, str]


def sample(logits: Tensor, sequences: Rows[Row], engine_seed: int) -> Sampled:
    """Choose the next token of each sequence from its row of fp32 `logits` `[rows, vocab]`, which must be finite.

    A sequence may have several rows, as `verify.rows_of` gives them.
    """
    params = [sequence.request.params for sequence in sequences]
    raw = logits
    failed: dict[int, str] = {}
    changed = [row for row, sequence in enumerate(sequences) if _changes_logits(params[row], sequence)]
    if changed:
        logits = raw.clone()
        for row in changed:
            try:
                mask(logits[row], sequences[row])
            except GrammarFailure as error:
                failed[row] = f"{GRAMMAR_FAILED}{error}"
            apply_penalties(logits[row], sequences[row])
    tokens = _choose(logits, params, sequences, engine_seed)
    wanted = [row for row, each in enumerate(params) if each.logprobs is not None]
    return Sampled(tokens, _logprobs(raw, sequences, tokens, wanted), failed)


def _choose(logits: Tensor, params: Rows[SamplingParams], sequences: Rows[Row], engine_seed: int) -> list[int]:
    random = [row for row, each in enumerate(params) if each.temperature >= GREEDY_BELOW]
    if (module := native()) is not None:
        if not random:
            return sampling.greedy(module, logits)
        seeds = [_seed_of(sequence, engine_seed) for sequence in sequences]
        return sampling.choose(module, logits, params, seeds, [sequence.num_tokens for sequence in sequences])
    numbers = [_number_for(sequences[row], engine_seed) for row in random]
    return choose_with_torch(logits, params, random, numbers)


def choose_with_torch(
    logits: Tensor, params: Rows[SamplingParams], random: Rows[int], numbers: Rows[float]
) -> list[int]:
    """The twin of `kernels.sampling.choose`: the largest of each row, but for the rows `random`, which take their
    `numbers`."""
    tokens: list[int] = logits.argmax(dim=-1).tolist()
    if random:
        rows = logits if len(random) == len(params) else logits[list(random)]
        probabilities = filtered_probabilities(rows, [params[row] for row in random])
        for row, token in zip(random, invert(probabilities, numbers), strict=True):
            tokens[row] = token
    return tokens


def filtered_probabilities(logits: Tensor, params: Rows[SamplingParams]) -> Tensor:
    """Probabilities `[rows, vocab]` after temperature, min-p, top-k and top-p; rows need not sum to exactly 1."""
    # Differences to the row's largest logit: however low the temperature, they run to -inf and never to NaN.
    scaled = (logits - logits.amax(dim=-1, keepdim=True)) / torch.tensor([[each.temperature] for each in params])
    if any(each.min_p > 0.0 for each in params):
        # p >= min_p * p_max, in logits: log p - log p_max >= log min_p.
        floor = torch.tensor([[each.min_p] for each in params]).log()
        scaled = scaled.masked_fill(scaled - scaled.amax(dim=-1, keepdim=True) < floor, -torch.inf)
    vocab = scaled.shape[-1]
    limits = [each.top_k if 0 < each.top_k < vocab else vocab for each in params]
    for group, width in _sort_widths(scaled, limits, params):
        limit = torch.tensor([[limits[row]] for row in group])
        top_p = torch.tensor([[params[row].top_p] for row in group], dtype=torch.float64)
        scaled[group] = _truncate(scaled[group], limit, top_p, width)
    return torch.softmax(scaled, dim=-1)


def invert(probabilities: Tensor, numbers: Rows[float]) -> list[int]:
    """The first token id whose cumulative probability exceeds number * total, per row; ids of probability 0 never."""
    cumulative = probabilities.cumsum(dim=-1, dtype=torch.float64)
    thresholds = torch.tensor(numbers, dtype=torch.float64).unsqueeze(1) * cumulative[:, -1:]
    chosen: list[int] = torch.searchsorted(cumulative, thresholds, right=True).squeeze(1).tolist()
    return chosen


def _changes_logits(params: SamplingParams, sequence: Row) -> bool:
    return (
        params.repetition_penalty != 1.0
        or params.presence_penalty != 0.0
        or params.frequency_penalty != 0.0
        or is_masked(sequence)
    )


def apply_penalties(logits: Tensor, sequence: Row) -> None:
    """In place, one row.  Repetition counts prompt and output, the other two the output alone (as vLLM)."""
    params = sequence.request.params
    if params.repetition_penalty != 1.0:
        seen = torch.tensor(sorted(set(sequence.token_ids)))
        values = logits[seen]
        penalty = params.repetition_penalty
        # A penalty near zero overflows; the largest number stays comparable, where inf - inf would be NaN.
        logits[seen] = torch.where(values > 0, values / penalty, values * penalty).clamp(
            max=torch.finfo(logits.dtype).max
        )
    if sequence.output_token_ids and (params.frequency_penalty or params.presence_penalty):
        counts = Counter(sequence.output_token_ids)
        cost = params.frequency_penalty * torch.tensor(list(counts.values())) + params.presence_penalty
        logits[list(counts)] -= cost


def _seed_of(sequence: Row, engine_seed: int) -> int:
    seed = sequence.request.params.seed
    return derive_seed(engine_seed, sequence.order) if seed is None else seed & _MASK64


def _number_for(sequence: Row, engine_seed: int) -> float:
    return uniform(_seed_of(sequence, engine_seed), sequence.num_tokens)


def _sort_widths(scaled: Tensor, limits: Rows[int], params: Rows[SamplingParams]) -> list[tuple[list[int], int]]:
    """Rows to truncate, grouped by how many of their largest values must be sorted."""
    vocab = scaled.shape[-1]
    narrow = [row for row, limit in enumerate(limits) if limit <= min(_TOP_CANDIDATES, vocab - 1)]
    groups = {max((limits[row] for row in narrow), default=0): narrow}
    wide = [row for row, limit in enumerate(limits) if _TOP_CANDIDATES < limit < vocab]
    nucleus = [row for row, limit in enumerate(limits) if limit == vocab and params[row].top_p < 1.0]
    if nucleus:
        candidates = scaled[nucleus]
        width = min(_TOP_CANDIDATES, vocab)
        mass = candidates.topk(width, dim=-1).values.logsumexp(dim=-1) - candidates.logsumexp(dim=-1)
        is_enough = (mass.exp() > torch.tensor([params[row].top_p for row in nucleus])).tolist()
        enough = [row for row, each in zip(nucleus, is_enough, strict=True) if each]
        wide += [row for row, each in zip(nucleus, is_enough, strict=True) if not each]
        groups[width] = groups.get(width, []) + enough
    groups[vocab] = groups.get(vocab, []) + wide
    return [(rows, width) for width, rows in groups.items() if rows]


def _truncate(scaled: Tensor, limit: Tensor, top_p: Tensor, width: int) -> Tensor:
    """Top-k, then top-p of what is left, with the `width` largest values sorted.

    Only values are sorted: a threshold says the rest.  `limit` and `top_p` are `[rows, 1]`; where no value may be cut
    by its rank, `limit` is the vocabulary's size.
    """
    largest = scaled.topk(width, dim=-1).values
    kth = largest.gather(1, limit.clamp(max=width) - 1)
    kth[limit == scaled.shape[-1]] = -torch.inf
    # What is left in the whole row, not only of what was sorted: ties with the k-th value, or the tail.
    # Summed in fp64: in fp32 the last token of a wide nucleus would be a matter of rounding.
    best = largest[:, :1]
    weights = (scaled - best).exp_().masked_fill_(scaled < kth, 0.0)
    shares = (largest - best).double().exp() / weights.sum(dim=-1, keepdim=True, dtype=torch.float64)
    before = shares.cumsum(dim=-1) - shares
    is_inside = (before < top_p) & (largest >= kth)
    last = is_inside.sum(dim=-1, keepdim=True).clamp(min=1) - 1
    nucleus = largest.gather(1, last)
    nucleus[top_p >= 1.0] = -torch.inf
    return scaled.masked_fill(scaled < torch.maximum(kth, nucleus), -torch.inf)


def _logprobs(raw: Tensor, sequences: Rows[Row], tokens: Rows[int], wanted: Rows[int]) -> dict[int, TokenLogprob]:
    if not wanted:
        return {}
    rows = raw[list(wanted)]
    numbers = [sequences[row].request.params.logprobs or 0 for row in wanted]
    found = describe(rows, [tokens[row] for row in wanted], numbers)
    for place, row in enumerate(wanted):
        if ids := sequences[row].request.params.logprob_token_ids:
            found[place] = named(found[place], raw[row], ids)
    return dict(zip(wanted, found, strict=True))
