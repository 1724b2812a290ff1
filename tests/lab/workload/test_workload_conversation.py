"""The built-in conversation has the published campaign's totals, in every cut that the logs allow."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.lab.workload.conversation import STRATA, _correct, conversation_lengths


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_a_thousand_requests_have_the_published_totals_exactly(seed: int) -> None:
    lengths = conversation_lengths(1000, seed)
    assert sum(p for p, _ in lengths) == 217_393
    assert sum(o for _, o in lengths) == 198_700
    for limit, requests, tokens_in, tokens_out in ((256, 296, 14_909, 29_120), (512, 700, 82_224, 108_536)):
        short = [(p, o) for p, o in lengths if p + o <= limit]
        assert (len(short), sum(p for p, _ in short), sum(o for _, o in short)) == (requests, tokens_in, tokens_out)


def test_every_request_passes_vllms_filter() -> None:
    for p, o in conversation_lengths(1000, 0):
        assert p >= 4 and o >= 4 and p <= 1024 and p + o <= 2048


def test_short_answers_that_make_tpot_tails_are_there() -> None:
    short = sum(o <= 25 for _, o in conversation_lengths(1000, 0))
    assert 60 <= short <= 200


def test_the_order_is_mixed_and_the_seed_decides() -> None:
    lengths = conversation_lengths(1000, 0)
    assert lengths == conversation_lengths(1000, 0) != conversation_lengths(1000, 1)
    first, last = lengths[:500], lengths[500:]
    assert sum(p for p, _ in first) == pytest.approx(sum(p for p, _ in last), rel=0.25)


@pytest.mark.parametrize("count", [1, 2, 3, 10, 37, 64, 250, 2500])
def test_any_count_keeps_the_shares_and_the_means(count: int) -> None:
    lengths = conversation_lengths(count, 0)
    assert len(lengths) == count
    for stratum in STRATA:
        inside = [(p, o) for p, o in lengths if stratum.low < p + o <= stratum.high]
        assert abs(len(inside) - count * stratum.requests / 1000) < 1
        if inside:
            mean = sum(p for p, _ in inside) / len(inside)
            assert mean == pytest.approx(stratum.prompt_tokens / stratum.requests, abs=1)


@pytest.mark.parametrize("seed", range(6))
def test_few_requests_come_as_near_as_they_can(seed: int) -> None:
    """With one or two requests in a stratum, a long answer leaves its prompt no room: no count may fail for that."""
    for count in (*range(1, 13), *range(13 + seed, 61, 6)):
        lengths = conversation_lengths(count, seed)
        assert len(lengths) == count
        for stratum in STRATA:
            inside = [(p, o) for p, o in lengths if stratum.low < p + o <= stratum.high]
            share = len(inside) / stratum.requests
            assert abs(sum(p for p, _ in inside) - share * stratum.prompt_tokens) <= 0.5
            assert abs(sum(o for _, o in inside) - share * stratum.output_tokens) <= 0.5


def test_a_total_that_no_lengths_have_ends_at_the_nearest() -> None:
    """Prompts beside answers of 60 and 100 tokens in (0, 256]: at most 196 and 156."""
    lengths = np.array([[50, 60], [100, 100]])
    _correct(lengths, 0, 10_000, STRATA[0], np.random.default_rng(0))
    assert lengths.tolist() == [[196, 60], [156, 100]]
