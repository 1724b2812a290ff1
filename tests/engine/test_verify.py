"""Drafts are right when they are what the sampler chooses anyway: same tokens, same distribution, same rules."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import pytest
import torch

from headrace.core.batch import Chunk
from headrace.core.request import Request, SamplingParams
from headrace.core.sequence import Sequence
from headrace.core.thinking import ThinkingBudget
from headrace.engine.sampler import sample
from headrace.engine.verify import num_right, rows_of

VOCAB = 8


def sequence(output: tuple[int, ...] = (), **params: Any) -> Sequence:
    made = Sequence(Request("a", (1, 2), SamplingParams(**{"max_tokens": 64, **params}), frozenset({0})))
    made.output_token_ids += output
    made.num_tokens += len(output)
    return made


def model(tokens: list[int]) -> torch.Tensor:
    """Logits after `tokens`: a function of the last two."""
    generator = torch.Generator().manual_seed(tokens[-1] * 31 + tokens[-2])
    return torch.randn(VOCAB, generator=generator) * 1.5


def one_by_one(output: tuple[int, ...], count: int, rules: dict[str, Any]) -> list[int]:
    tokens: list[int] = []
    for _ in range(count):
        row = sequence((*output, *tokens), **rules)
        tokens += sample(model(row.token_ids).unsqueeze(0), [row], 0).tokens
    return tokens


def together(running: Sequence, drafts: tuple[int, ...]) -> list[int]:
    """What one step with drafts brings."""
    chunk = Chunk(running, running.num_tokens - 1, 1 + len(drafts), True, drafts)
    known = running.token_ids
    logits = torch.stack([model([*known, *drafts[:n]]) for n in range(len(drafts) + 1)])
    sampled = sample(logits, rows_of(chunk), 0)
    right = num_right(drafts, sampled.tokens, sampled.failed)
    return sampled.tokens[: right + 1]


RULES: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1.0, "seed": 4},
    {"temperature": 0.7, "seed": 5, "top_p": 0.8, "top_k": 5, "min_p": 0.02},
    {"temperature": 0.0, "repetition_penalty": 1.8},
    {"temperature": 0.0, "frequency_penalty": 1.5, "presence_penalty": 0.5},
    {"temperature": 0.0, "bad_words_token_ids": ((3, 4), (5,), (2, 6))},
    {"temperature": 0.0, "min_tokens": 5, "stop_token_ids": (1, 2, 3)},
    {"temperature": 0.0, "logit_bias": ((4, 3.0),), "allowed_token_ids": (1, 4, 5, 6)},
    {"temperature": 0.0, "thinking": ThinkingBudget(2, open_id=3, close_id=5, begins_inside=True)},
]


@pytest.mark.parametrize("rules", RULES, ids=lambda rules: "-".join(rules))
def test_a_step_with_drafts_brings_what_single_steps_bring(rules: dict[str, Any]) -> None:
    """Whatever the drafts are: each token counts the drafts before it, for penalties, bad words and minima alike."""
    rng = random.Random(7)
    right = 0
    for trial in range(60):
        output = tuple(rng.randrange(1, VOCAB) for _ in range(rng.randint(0, 4)))
        expected = one_by_one(output, 4, rules)
        drafts = [token if rng.random() < 0.8 else rng.randrange(VOCAB) for token in expected[:3]]
        tokens = together(sequence(output, **rules), tuple(drafts))
        assert tokens == expected[: len(tokens)], f"trial {trial}"
        right += len(tokens) - 1
    assert right > 50


def test_sampled_tokens_keep_the_distribution_of_the_model() -> None:
    """Chi square over pairs: first token, and second given the first, drafted or not (99.99 % bound)."""
    drafts = (3,)
    weights = torch.softmax(model([1, 2]), dim=-1).tolist()
    pairs: Counter[tuple[int, ...]] = Counter()
    trials = 2000
    for seed in range(trials):
        running = sequence(temperature=1.0, seed=seed)
        tokens = together(running, drafts)
        if len(tokens) < 2:  # the draft was wrong: the next step draws the second token
            running = sequence(tuple(tokens), temperature=1.0, seed=seed)
            tokens = [*tokens, *together(running, ())]
        pairs[tuple(tokens)] += 1
    chi, cells = 0.0, 0
    for first, weight in enumerate(weights):
        following = torch.softmax(model([2, first]), dim=-1).tolist()
        for second, share in enumerate(following):
            expected = trials * weight * share
            if expected >= 5:
                chi += (pairs[first, second] - expected) ** 2 / expected
                cells += 1
    assert cells > 10
    assert chi < cells + 3.72 * math.sqrt(2 * cells) + 6


def test_a_draft_is_kept_as_often_as_the_model_would_say_it() -> None:
    weights = torch.softmax(model([1, 2]), dim=-1).tolist()
    trials = 800
    for draft in (0, 3):
        kept = sum(
            len(together(sequence(temperature=1.0, seed=s, ignore_eos=True), (draft,))) == 2 for s in range(trials)
        )
        expected = weights[draft]
        assert abs(kept / trials - expected) < 4 * math.sqrt(expected * (1 - expected) / trials)


@pytest.mark.parametrize(
    ("drafts", "tokens", "unfit", "right"),
    [
        ((), (7,), (), 0),
        ((1, 2), (1, 2, 3), (), 2),
        ((1, 2), (1, 9, 3), (), 1),
        ((1, 2), (9, 2, 3), (), 0),
        ((1, 2), (1, 2, 3), (2,), 1),  # nothing may follow the second draft: it waits for the next step
        ((1, 2), (1, 2, 3), (1,), 0),
    ],
)
def test_drafts_count_up_to_the_first_wrong_one(
    drafts: tuple[int, ...], tokens: tuple[int, ...], unfit: tuple[int, ...], right: int
) -> None:
    assert num_right(drafts, tokens, unfit) == right
