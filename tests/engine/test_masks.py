"""What a request may not say: exact logits after each rule."""

from __future__ import annotations

import math

import pytest
import torch

from headrace.core.batch import Chunk
from headrace.core.request import Request, SamplingParams
from headrace.core.sequence import Sequence
from headrace.core.thinking import ThinkingBudget
from headrace.engine.masks import mask
from headrace.engine.sampler import sample
from headrace.engine.verify import rows_of

LOGITS = [5.0, 4.0, 3.0, 2.0, 1.0, 0.0]
NO = -math.inf


def sequence(output: tuple[int, ...] = (), eos: frozenset[int] = frozenset(), **params: object) -> Sequence:
    result = Sequence(Request("a", (1, 2), SamplingParams(max_tokens=64, **params), eos))  # type: ignore[arg-type]
    result.output_token_ids += output
    result.num_tokens += len(output)
    return result


def masked(row: Sequence) -> list[float]:
    logits = torch.tensor(LOGITS)
    mask(logits, row)
    values: list[float] = logits.tolist()
    return values


def test_a_bias_is_added_to_its_tokens_alone() -> None:
    assert masked(sequence(logit_bias=((0, -100.0), (4, 2.5)))) == [-95.0, 4.0, 3.0, 2.0, 3.5, 0.0]


def test_only_allowed_tokens_are_left() -> None:
    assert masked(sequence(allowed_token_ids=(3, 1))) == [NO, 4.0, NO, 2.0, NO, NO]


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ((), [5.0, NO, 3.0, 2.0, 1.0, 0.0]),  # a word of one token is forbidden from the start
        ((2,), [5.0, NO, 3.0, 2.0, 1.0, 0.0]),
        ((2, 3), [5.0, NO, 3.0, 2.0, NO, 0.0]),  # "2 3 4": its last token, after the others
        ((2, 3, 0), [5.0, NO, 3.0, 2.0, 1.0, 0.0]),
        ((0, 2, 3), [5.0, NO, 3.0, 2.0, NO, 0.0]),
    ],
)
def test_the_last_token_of_a_bad_word_is_forbidden_after_its_beginning(
    output: tuple[int, ...], expected: list[float]
) -> None:
    assert masked(sequence(output, bad_words_token_ids=((1,), (2, 3, 4)))) == expected


def test_a_bad_word_that_begins_in_the_prompt_is_not_one() -> None:
    assert masked(sequence(bad_words_token_ids=((1, 2, 3),))) == LOGITS


def test_a_rule_that_leaves_nothing_does_not_apply() -> None:
    assert masked(sequence(allowed_token_ids=(3,), bad_words_token_ids=((3,),))) == [NO, NO, NO, 2.0, NO, NO]
    ends = sequence(eos=frozenset({3}), allowed_token_ids=(3,), min_tokens=4)
    assert masked(ends) == [NO, NO, NO, 2.0, NO, NO]


def test_the_bias_comes_before_the_penalties() -> None:
    """As in vLLM: a repetition penalty divides the biased value."""
    row = sequence((0,), temperature=0.0, logit_bias=((0, 3.0),), repetition_penalty=4.0)
    assert sample(torch.tensor([[5.0, 0.0, 0.0, 2.5, 1.0, 0.0]]), [row], 0)[0] == [3], "(5 + 3) / 4 = 2, not 5 / 4 + 3"


def test_masked_tokens_are_never_drawn_and_raw_log_probabilities_are_reported() -> None:
    rows = [sequence(seed=seed, allowed_token_ids=(4, 5), temperature=5.0, logprobs=1) for seed in range(200)]
    tokens, logprobs, _ = sample(torch.tensor([LOGITS] * 200), rows, 0)
    assert set(tokens) == {4, 5}
    assert logprobs[0].top[0][0] == 0


def test_a_spent_thinking_budget_leaves_the_closing_mark_alone() -> None:
    """Token 4 opens the thinking, 5 closes it; what a draft would have closed is open again when it was wrong."""
    budget = ThinkingBudget(2, 4, 5)
    closing = [NO] * 5 + [0.0]
    assert masked(sequence((1, 1, 1), thinking=budget)) == LOGITS
    assert masked(sequence((4, 1), thinking=budget)) == LOGITS
    assert masked(sequence((4, 1, 1), thinking=budget)) == closing
    assert masked(sequence((4, 1, 1, 5), thinking=budget)) == LOGITS
    row = sequence((4, 1), thinking=budget)
    first, second, third = rows_of(Chunk(row, 2, 3, True, (5, 1)))
    assert [masked(each) for each in (first, second, third)] == [LOGITS] * 3  # type: ignore[arg-type]
    row.output_token_ids.append(1)
    row.num_tokens += 1
    assert masked(row) == closing
