"""A workload that makes no sense is refused where it is declared, with the key and what would be accepted."""

from __future__ import annotations

import math

import pytest

from headrace.errors import ConfigError
from headrace.lab.workload.spec import WorkloadSpec


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dataset_name", "sharegtp"),
        ("num_prompts", 0),
        ("num_prompts", True),
        ("num_prompts", 1.5),
        ("request_rate", 0),
        ("request_rate", math.nan),
        ("request_rate", "fast"),
        ("burstiness", -1.0),
        ("scale", math.inf),
        ("max_concurrency", 0),
        ("random_range_ratio", 1.0),
        ("temperature", -0.1),
        ("endpoint", "v1"),
        ("timeout_s", 0),
    ],
)
def test_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=key):
        WorkloadSpec.from_mapping({key: value}, where="plan.toml [workload]")


def test_combinations_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="dataset_path is needed"):
        WorkloadSpec(dataset_name="sharegpt")
    with pytest.raises(ConfigError, match="scale"):
        WorkloadSpec(dataset_name="sharegpt", dataset_path="x", scale=0.5)
    with pytest.raises(ConfigError, match="only for the dataset sharegpt"):
        WorkloadSpec(dataset_path="x")


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"plan\.toml.*'num_promts'"):
        WorkloadSpec.from_mapping({"num_promts": 3}, where="plan.toml")


def test_it_survives_json_and_keeps_secrets_out() -> None:
    spec = WorkloadSpec(num_prompts=5, extra_body={"top_k": 1}, headers={"Authorization": "Bearer secret"})
    data = spec.to_json()
    assert data["request_rate"] == "inf" and "secret" not in str(data) and "secret" not in repr(spec)
    again = WorkloadSpec.from_mapping(data)
    assert again.to_json() == data and again.digest() == spec.digest()
    assert spec.digest() != WorkloadSpec(num_prompts=6).digest()


def test_lengths_are_forced_where_they_are_the_point() -> None:
    assert WorkloadSpec().force_lengths and WorkloadSpec(dataset_name="random").force_lengths
    assert not WorkloadSpec(dataset_name="sharegpt", dataset_path="x").force_lengths
    assert not WorkloadSpec(ignore_eos=False).force_lengths


def test_a_closed_loop_is_an_infinite_rate_with_a_limit() -> None:
    assert WorkloadSpec(max_concurrency=3).closed_loop
    assert not WorkloadSpec(max_concurrency=3, request_rate=1.0).closed_loop
    assert not WorkloadSpec().closed_loop
