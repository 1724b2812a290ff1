"""Native sampling chooses the tokens of its torch twin, and log-probabilities are those of log_softmax."""

from __future__ import annotations

import itertools

import pytest
import torch

from headrace.core.request import SamplingParams
from headrace.engine.kernels import native, sampling
from headrace.engine.prompt_logprobs import describe_with_torch
from headrace.engine.sampler import choose_with_torch, filtered_probabilities, uniform

pytestmark = pytest.mark.skipif(native() is None, reason="the native kernels are not built")

FILTERS: list[dict[str, float]] = [
    {},
    {"temperature": 3.0},
    {"temperature": 0.05},
    {"top_k": 1},
    {"top_k": 40},
    {"top_k": 2000},
    {"top_p": 0.9},
    {"top_p": 0.999},
    {"min_p": 0.05},
    {"top_k": 50, "top_p": 0.9},
    {"min_p": 0.02, "top_p": 0.8},
    {"min_p": 0.01, "top_k": 20, "top_p": 0.95},
    {"temperature": 2.0, "top_p": 0.95},
]


def both(logits: torch.Tensor, params: list[SamplingParams]) -> tuple[list[int], list[int]]:
    rows = list(range(len(params)))
    seeds, positions = [17 * row for row in rows], [5 + row for row in rows]
    found = sampling.choose(native(), logits, params, seeds, positions)  # type: ignore[arg-type]
    numbers = [uniform(seed, position) for seed, position in zip(seeds, positions, strict=True)]
    random = [row for row in rows if params[row].temperature >= sampling.GREEDY_BELOW]
    return found, choose_with_torch(logits, params, random, [numbers[row] for row in random])


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_tokens_are_those_of_the_twin(filters: dict[str, float]) -> None:
    """Flat and peaked rows, small and large vocabularies, many ties, half of a row forbidden."""
    torch.manual_seed(0)
    for vocab, deviation in itertools.product((7, 1000, 20_011), (0.3, 4.0)):
        logits = torch.randn(24, vocab) * deviation
        logits[1::3] = (logits[1::3] * 4).round() / 4
        logits[2::3, vocab // 2 :] = -torch.inf
        params = [SamplingParams(**{"temperature": 0.8, **filters})] * len(logits)  # type: ignore[arg-type]
        found, expected = both(logits, params)
        assert found == expected


def test_greedy_and_random_rows_in_one_batch() -> None:
    logits = torch.randn(6, 500)
    logits[0, [7, 300]] = 9.0
    params = [SamplingParams(temperature=0.0 if row % 2 == 0 else 1.0) for row in range(6)]
    found, expected = both(logits, params)
    assert found == expected
    assert found[0] == 7, "the lowest id among equals"
    assert sampling.greedy(native(), logits) == logits.argmax(dim=-1).tolist()  # type: ignore[arg-type]


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    torch.manual_seed(1)
    logits = torch.randn(9, 3000) * 3
    params = [SamplingParams(temperature=1.0, top_p=0.9)] * 9
    together = sampling.choose(native(), logits, params, range(9), range(9))  # type: ignore[arg-type]
    for row in range(9):
        alone = sampling.choose(native(), logits[row : row + 1], params[:1], [row], [row])  # type: ignore[arg-type]
        assert alone == [together[row]]


def test_frequencies_are_those_of_the_filtered_distribution() -> None:
    """20,000 draws from one row: each token's share within five standard deviations of its probability."""
    torch.manual_seed(2)
    row, count = torch.randn(1, 60) * 2, 20_000
    params = SamplingParams(temperature=0.9, top_p=0.9, top_k=30)
    expected = filtered_probabilities(row, [params])[0].double()
    expected /= expected.sum()
    logits = row.expand(count, -1).contiguous()
    tokens = sampling.choose(native(), logits, [params] * count, range(count), [3] * count)  # type: ignore[arg-type]
    shares = torch.bincount(torch.tensor(tokens), minlength=60).double() / count
    assert (shares[expected == 0] == 0).all()
    assert ((shares - expected).abs() <= 5 * (expected * (1 - expected) / count).sqrt()).all()


def test_the_number_of_a_token_is_the_same_in_both_languages() -> None:
    for seed, position in itertools.product((0, 1, 12345, 2**63, 2**64 - 1), (0, 5, 100_000)):
        assert native().uniform(seed, position) == uniform(seed, position)  # type: ignore[union-attr]


def test_log_probabilities_ranks_and_alternatives() -> None:
    torch.manual_seed(3)
    logits = torch.randn(5, 4000) * 3
    logits[3, 100:200] = -torch.inf
    tokens, numbers = [0, 17, 3999, 50, 2], [0, 3, 20, 1, 5]
    found = sampling.describe(native(), logits, tokens, numbers)  # type: ignore[arg-type]
    for mine, twin in zip(found, describe_with_torch(logits, tokens, numbers), strict=True):
        assert (mine.token_id, mine.rank) == (twin.token_id, twin.rank)
        assert [token for token, _ in mine.top] == [token for token, _ in twin.top]
        values = [mine.logprob, *(value for _, value in mine.top)]
        assert values == pytest.approx([twin.logprob, *(value for _, value in twin.top)], abs=3e-6)


def test_a_bitmask_forbids() -> None:
    logits = torch.zeros(20)
    bits = torch.tensor([0b00000101, 0, 0b1000], dtype=torch.uint8)
    native().mask_row(logits.data_ptr(), 20, bits.data_ptr())  # type: ignore[union-attr]
    assert torch.isfinite(logits).nonzero().flatten().tolist() == [0, 2, 19]
