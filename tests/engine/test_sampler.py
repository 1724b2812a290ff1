"""The sampler against exact probabilities and plain formulas."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from headrace.core.request import Request, SamplingParams
from headrace.core.sequence import Sequence
from headrace.engine.sampler import apply_penalties, derive_seed, filtered_probabilities, sample, uniform

VOCAB = 12
LOGITS = torch.tensor([[2.0, 1.5, 1.5, 1.0, 0.5, 0.0, 0.0, -0.5, -1.0, -2.0, -3.0, -6.0]])


def sequence(
    request_id: str = "a",
    prompt: tuple[int, ...] = (1, 2),
    output: tuple[int, ...] = (),
    eos: frozenset[int] = frozenset(),
    **params: object,
) -> Sequence:
    result = Sequence(Request(request_id, prompt, SamplingParams(max_tokens=64, **params), eos))  # type: ignore[arg-type]
    result.output_token_ids += output
    result.num_tokens += len(output)
    return result


def probabilities(logits: torch.Tensor = LOGITS, **params: object) -> list[float]:
    result: list[float] = filtered_probabilities(logits, [SamplingParams(**params)])[0].tolist()  # type: ignore[arg-type]
    return result


def softmax(values: list[float]) -> list[float]:
    weights = [math.exp(value) for value in values]
    return [weight / sum(weights) for weight in weights]


# -- greedy


def test_greedy_takes_the_lowest_id_among_equals() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0, 1.0], [5.0, 1.0, 5.0, 5.0]])
    tokens, logprobs, _ = sample(logits, [sequence("a", temperature=0.0), sequence("b", temperature=0.0)], 0)
    assert tokens == [1, 0]
    assert logprobs == {}


# -- filters


def test_temperature_divides_the_logits() -> None:
    assert probabilities(temperature=0.5) == pytest.approx(softmax([2 * v for v in LOGITS[0].tolist()]), abs=1e-6)


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        ({"top_k": 1}, {0}),
        ({"top_k": 2}, {0, 1, 2}),  # 1 and 2 are equal: a tie with the threshold stays
        ({"top_k": 4}, {0, 1, 2, 3}),
        ({"top_k": 99}, set(range(VOCAB))),
        ({"top_p": 1e-9}, {0}),
        ({"top_p": 0.30}, {0}),  # the most likely has 0.31
        ({"top_p": 0.35}, {0, 1, 2}),
        ({"top_p": 0.75}, {0, 1, 2, 3}),
        ({"min_p": 1.0}, {0}),
        ({"min_p": math.exp(-1.01)}, {0, 1, 2, 3}),  # within 1.01 nats of the best
        # Top-p is taken of what top-k left: 0 has 0.45 of {0, 1, 2}.
        ({"top_k": 3, "top_p": 0.44}, {0}),
        ({"top_k": 3, "top_p": 0.46}, {0, 1, 2}),
        ({"min_p": math.exp(-1.01), "top_p": 0.40}, {0, 1, 2}),
    ],
)
def test_filters_keep_exactly_these_tokens(params: dict[str, float], kept: set[int]) -> None:
    result = probabilities(temperature=1.0, **params)
    assert {token for token, value in enumerate(result) if value > 0} == kept
    raw = softmax(LOGITS[0].tolist())
    mass = sum(raw[token] for token in kept)
    assert result == pytest.approx([raw[t] / mass if t in kept else 0.0 for t in range(VOCAB)], abs=1e-6)


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("scale", [0.1, 3.0])
@pytest.mark.parametrize("top_k", [0, 5, 3000])
def test_a_large_vocabulary_is_filtered_as_a_plain_loop_would(top_p: float, scale: float, top_k: int) -> None:
    """Flat distributions need the whole vocabulary sorted, peaked ones do not: same answer."""
    torch.manual_seed(0)
    logits = torch.randn(1, 5000) * scale
    values = sorted(enumerate(logits[0].double().tolist()), key=lambda pair: -pair[1])
    values = values[: top_k or None]
    total = math.fsum(math.exp(value) for _, value in values)
    expected, mass = set(), 0.0
    for token, value in values:
        if mass >= top_p:
            break
        expected.add(token)
        mass += math.exp(value) / total
    found = torch.nonzero(filtered_probabilities(logits, [SamplingParams(top_p=top_p, top_k=top_k)])[0])
    assert set(found.flatten().tolist()) == expected


def test_rows_with_different_filters_do_not_disturb_each_other() -> None:
    torch.manual_seed(1)
    logits = torch.randn(5, 3000) * 2
    params = [
        SamplingParams(top_k=3),
        SamplingParams(top_p=0.7),
        SamplingParams(min_p=0.05, temperature=0.6),
        SamplingParams(),
        SamplingParams(top_k=2000, top_p=0.99, temperature=1.7),
    ]
    together = filtered_probabilities(logits, params)
    for row, each in enumerate(params):
        assert torch.equal(together[row], filtered_probabilities(logits[row : row + 1], [each])[0])


# -- randomness


@pytest.mark.parametrize("params", [{}, {"temperature": 0.7, "top_p": 0.9}, {"temperature": 1.5, "top_k": 5}])
def test_frequencies_fit_the_exact_probabilities(params: dict[str, float]) -> None:
    expected = probabilities(**{"temperature": 1.0} | params)
    draws = 20_000
    counts = [0] * VOCAB
    for start in range(0, draws, 500):
        rows = [sequence(str(seed), seed=seed, **params) for seed in range(start, start + 500)]
        for token in sample(LOGITS.expand(500, -1), rows, 0)[0]:
            counts[token] += 1
    support = [token for token in range(VOCAB) if expected[token] > 0]
    assert sum(counts[token] for token in support) == draws
    fit = stats.chisquare([counts[t] for t in support], [expected[t] / sum(expected) * draws for t in support])
    assert fit.pvalue > 1e-3


def test_the_uniform_numbers_are_uniform_over_seeds_and_over_positions() -> None:
    over_seeds = [uniform(seed, 7) for seed in range(20_000)]
    over_positions = [uniform(7, position) for position in range(20_000)]
    for numbers in (over_seeds, over_positions):
        assert stats.kstest(numbers, "uniform").pvalue > 1e-3
    assert abs(stats.pearsonr(over_positions[:-1], over_positions[1:]).statistic) < 0.03
    assert abs(stats.pearsonr(over_seeds, over_positions).statistic) < 0.03


def test_a_sample_depends_on_seed_and_position_but_not_on_the_batch() -> None:
    torch.manual_seed(2)
    logits = torch.randn(6, 300)
    rows = [sequence(f"r{i}", output=(3,) * i, seed=100 + i, top_p=0.9, temperature=1.3) for i in range(6)]
    rows[4] = sequence("greedy", temperature=0.0)
    together = sample(logits, rows, 0)[0]
    backwards = sample(logits.flip(0), rows[::-1], 0)[0][::-1]
    alone = [sample(logits[i : i + 1], [rows[i]], 0)[0][0] for i in range(6)]
    assert together == backwards == alone


def test_without_a_seed_the_engine_seed_and_the_request_number_decide() -> None:
    """Ids are random in the server: the same requests in the same order must still sample the same tokens."""
    logits = torch.zeros(1, 1000)

    def drawn(request_id: str, order: int, seed: int) -> int:
        one = sequence(request_id)
        one.order = order
        return sample(logits, [one], seed)[0][0]

    assert drawn("a", 5, 1) == drawn("b", 5, 1)
    assert len({drawn("a", order, seed) for order in range(8) for seed in (1, 2)}) > 12
    assert len({derive_seed(1, 0), derive_seed(2, 0), derive_seed(1, 1)}) == 3


# -- penalties and min_tokens


def test_penalties_follow_the_plain_formula() -> None:
    prompt, output = (0, 9), (1, 1, 3)
    row = sequence(
        prompt=prompt,
        output=output,
        temperature=0.0,
        repetition_penalty=1.5,
        frequency_penalty=0.3,
        presence_penalty=0.2,
    )
    expected = []
    for token, value in enumerate(LOGITS[0].tolist()):
        if token in prompt + output:
            value = value / 1.5 if value > 0 else value * 1.5
        expected.append(value - 0.3 * output.count(token) - (0.2 if token in output else 0.0))
    # Sampled frequencies would hide small errors: compare the logits that are sampled from.
    changed = LOGITS.clone()
    apply_penalties(changed[0], row)
    assert changed[0].tolist() == pytest.approx(expected, abs=1e-6)
    assert sample(LOGITS, [row], 0)[0] == [2]  # 0 falls to 1.33, 1 to 0.2; 2 keeps its 1.5
    assert LOGITS[0, 0] == 2.0, "the caller's logits are not changed"


def test_end_tokens_wait_for_min_tokens() -> None:
    settings = {"temperature": 0.0, "min_tokens": 2, "stop_token_ids": (1,)}
    early = sequence(output=(5,), eos=frozenset({0}), **settings)
    late = sequence(output=(5, 5), eos=frozenset({0}), **settings)
    assert sample(LOGITS, [early], 0)[0] == [2]
    assert sample(LOGITS, [late], 0)[0] == [0]
    ignored = sequence(output=(5,), eos=frozenset({0}), **settings, ignore_eos=True)
    assert sample(LOGITS, [ignored], 0)[0] == [0], "an end token that ends nothing is a token like any other"


# -- log-probabilities


def test_logprobs_are_of_the_raw_distribution() -> None:
    exact = [math.log(value) for value in softmax(LOGITS[0].tolist())]
    row = sequence("a", temperature=0.0, min_tokens=5, stop_token_ids=(0,), logprobs=2)
    tokens, logprobs, _ = sample(LOGITS, [row], 0)
    entry = logprobs[0]
    assert tokens == [1]
    assert entry.token_id == 1
    assert entry.logprob == pytest.approx(exact[1], abs=1e-5)
    assert entry.rank == 2
    assert [token for token, _ in entry.top] == [0, 1] or [token for token, _ in entry.top] == [0, 2]
    assert [value for _, value in entry.top] == pytest.approx([exact[0], exact[1]], abs=1e-5)


def test_logprobs_are_reported_to_those_who_asked() -> None:
    rows = [sequence("none"), sequence("zero", logprobs=0), sequence("five", logprobs=5)]
    _, logprobs, _ = sample(LOGITS.expand(3, -1), rows, 0)
    assert {row: len(entry.top) for row, entry in logprobs.items()} == {1: 0, 2: 5}


@pytest.mark.parametrize("temperature", [1e-4, 1.0])
@pytest.mark.parametrize("penalty", [1e-37, 1e-6, 100.0])
def test_extreme_penalties_and_temperatures_give_a_token_of_the_vocabulary(penalty: float, temperature: float) -> None:
    """A row that overflowed once gave the id one past the vocabulary, and the next step failed for everybody."""
    logits = torch.linspace(-30.0, 30.0, 64).repeat(2, 1)
    wild = sequence(prompt=tuple(range(64)), repetition_penalty=penalty, temperature=temperature, top_p=0.9, min_p=0.01)
    neighbour = sequence("b", seed=3)
    tokens = sample(logits, [wild, neighbour], 0).tokens
    assert 0 <= tokens[0] < 64
    assert [tokens[1]] == sample(logits[1:], [neighbour], 0)[0]
