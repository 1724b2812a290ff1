"""--speculative-config: what is taken, what becomes of it, and one sentence for everything else."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.core.scheduler import Speculation
from headrace.engine.config import EngineArgs, resolve, scheduler_config
from headrace.errors import ConfigError

FULL = '{"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4, "prompt_lookup_min": 2}'


def resolved(given: Any, **flags: Any) -> tuple[Any, str]:
    config, lines = resolve(
        EngineArgs(speculative_config=given, **flags), environ={}, free_memory_bytes=64 << 30, native_bf16=True
    )
    return config, "\n".join(lines)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (FULL, Speculation(4, 4, 2)),
        ({"method": "ngram", "num_speculative_tokens": 3}, Speculation(3, 5, 5)),
        ({"model": "[ngram]", "num_speculative_tokens": 3, "prompt_lookup_max": 2}, Speculation(3, 2, 2)),
        ({"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 7}, Speculation(3, 7, 7)),
        (None, None),
    ],
)
def test_it_reaches_the_scheduler(given: Any, expected: Speculation | None) -> None:
    config, _ = resolved(given)
    assert scheduler_config(config).speculation == expected


def test_it_is_said_at_start() -> None:
    _, lines = resolved(FULL)
    assert "speculative_config = ngram, at most 4 drafts a step, after the last 2 to 4 tokens: given" in lines


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("ngram", "'ngram' is no JSON object; write it like"),
        ("[" * 100_000, "is no JSON object"),
        ({"method": "eagle", "num_speculative_tokens": 2}, "\"method\" is 'eagle', but drafts come from n-grams only"),
        ({"model": "some/draft-model", "num_speculative_tokens": 2}, "\"model\" is 'some/draft-model'"),
        ({"num_speculative_tokens": 2}, '"method" is None'),
        ({"method": ["ngram"], "num_speculative_tokens": 2}, '"method" is'),
        ({"method": "ngram"}, '"num_speculative_tokens" is missing'),
        ({"method": "ngram", "num_speculative_tokens": 0}, "must be a whole number of at least 1, not 0"),
        ({"method": "ngram", "num_speculative_tokens": True}, "not True"),
        ({"method": "ngram", "num_speculative_tokens": "4"}, "not '4'"),
        ({"method": "ngram", "num_speculative_tokens": 4.0}, "not 4.0"),
        ({"method": "ngram", "num_speculative_tokens": 2048}, ": at most 2047"),
        ({"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": -1}, "not -1"),
        (
            {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2, "prompt_lookup_min": 3},
            r'"prompt_lookup_min" \(3\) must be at most "prompt_lookup_max" \(2\)',
        ),
        ({"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 1 << 40}, "must be below max_model_len"),
        ({"method": "ngram", "num_speculativ_tokens": 2}, "did you mean 'num_speculative_tokens'"),
    ],
)
def test_what_cannot_be_served_is_refused_in_a_sentence(given: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        resolved(given)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("--speculative-config")


def test_memory_counts_the_logits_of_drafts() -> None:
    plain, drafting = (resolved(given, max_num_seqs=512)[1] for given in (None, FULL))
    budget = {text: float(text.partition("activations ")[2].split(" ")[0]) for text in (plain, drafting)}
    assert budget[drafting] > budget[plain]


@pytest.mark.parametrize("flags", [{"scheduler_version": "v0"}, {"enable_chunked_prefill": False}])
def test_every_policy_takes_it(flags: dict[str, Any]) -> None:
    assert resolved(FULL, **flags)[0].speculation == Speculation(4, 4, 2)
