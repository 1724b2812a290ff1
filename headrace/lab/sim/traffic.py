"""What a simulated server is asked for: when each request comes, how long its prompt is and how long its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from headrace.errors import ConfigError
from headrace.lab.records.schema import RequestRecord
from headrace.lab.workload.arrivals import arrival_schedule
from headrace.lab.workload.samples import shared_prefix_tokens, spec_lengths
from headrace.lab.workload.spec import WorkloadSpec

Ints = NDArray[np.int64]

NS = 1_000_000_000


def _no_ints() -> Ints:
    return np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests in sending order, as columns of equal length (int64).

    planned_ns       when each is due, from the start of the run; never decreasing
    prompt_tokens    length of the prompt, at least 1
    output_tokens    length of the answer that the model gives, at least 1
    max_tokens       answer length asked for; what the server judges at admission; empty: as `output_tokens`
    priority         lower goes first under the priority policy; empty: all the same
    prefix_group, prefix_tokens   requests of one group begin with the same `prefix_tokens` tokens; empty: none do
    max_concurrency  the client's own limit of requests in flight; 0 = none
    """

    planned_ns: Ints
    prompt_tokens: Ints
    output_tokens: Ints
    max_tokens: Ints = field(default_factory=_no_ints)
    priority: Ints = field(default_factory=_no_ints)
    prefix_group: Ints = field(default_factory=_no_ints)
    prefix_tokens: Ints = field(default_factory=_no_ints)
    max_concurrency: int = 0

    def __post_init__(self) -> None:
        """Raises ConfigError naming the column."""
        count = len(self.planned_ns)
        given = {name: np.ascontiguousarray(getattr(self, name), np.int64) for name in _COLUMNS}
        if not len(given["max_tokens"]):
            given["max_tokens"] = given["output_tokens"]
        for name in ("priority", "prefix_group", "prefix_tokens"):
            if not len(given[name]):
                given[name] = np.zeros(count, np.int64)
        for name, column in given.items():
            if len(column) != count:
                raise ConfigError(f"{name} has {len(column)} values for {count} requests")
            object.__setattr__(self, name, column)
        if count and np.diff(self.planned_ns, prepend=0).min() < 0:
            raise ConfigError("planned_ns must be at least 0 and never decrease")
        for name in ("prompt_tokens", "output_tokens"):
            if count and given[name].min() < 1:
                raise ConfigError(f"{name} must be at least 1 everywhere")
        if (given["max_tokens"] < given["output_tokens"]).any():
            raise ConfigError("an answer is longer than its max_tokens")
        if (given["prefix_tokens"] > given["prompt_tokens"]).any() or (count and given["prefix_tokens"].min() < 0):
            raise ConfigError("prefix_tokens must be between 0 and prompt_tokens")
        if self.max_concurrency < 0:
            raise ConfigError("max_concurrency must be at least 0")

    def __len__(self) -> int:
        return len(self.planned_ns)

    def at_rate(self, factor: float) -> Traffic:
        """The same requests, coming `factor` times as fast: common random numbers for a search over rates."""
        return replace(self, planned_ns=np.rint(self.planned_ns / factor).astype(np.int64))

    def take(self, which: Ints) -> Traffic:
        """The requests at positions `which` (increasing): one replica's share, or the first half."""
        return replace(self, **{name: getattr(self, name)[which] for name in _COLUMNS})


_COLUMNS = (
    "planned_ns",
    "prompt_tokens",
    "output_tokens",
    "max_tokens",
    "priority",
    "prefix_group",
    "prefix_tokens",
)


def traffic_from_spec(spec: WorkloadSpec) -> Traffic:
    """The lengths and arrivals that a plan's workload declares, without its texts.

    Raises ConfigError for a dataset of real text, whose lengths need a tokenizer: `traffic_from_records` reads those
    off a measured run.
    """
    lengths = np.array(spec_lengths(spec), np.int64).reshape(-1, 2)
    prefix = np.full(len(lengths), shared_prefix_tokens(spec), np.int64)
    return Traffic(
        planned_ns=np.array(arrival_schedule(spec), np.int64),
        prompt_tokens=lengths[:, 0] + prefix,
        output_tokens=lengths[:, 1],
        prefix_tokens=prefix,
        max_concurrency=spec.max_concurrency or 0,
    )


def traffic_from_records(
    records: Sequence[RequestRecord], *, start_ns: int | None = None, max_concurrency: int | None = None
) -> Traffic:
    """Replay a measured run: its arrivals and lengths, request by request.

    start_ns  the run's start on the records' clock; the first planned time when it is not given
    Requests that the server refused keep their place: the simulated server refuses them by the same rule.
    Raises ConfigError when a record lacks a length.
    """
    ordered = sorted(records, key=lambda record: (record.planned_ns, record.index))
    origin = start_ns if start_ns is not None else (ordered[0].planned_ns if ordered else 0)
    rows = []
    for record in ordered:
        prompt = record.prompt_tokens_server or record.prompt_tokens_client
        output = record.output_tokens_server or record.output_tokens_retokenized or record.max_tokens
        if not prompt or not output:
            raise ConfigError(f"request {record.index} has no {'output' if prompt else 'prompt'} length")
        rows.append((record.planned_ns - origin, prompt, output, max(record.max_tokens or output, output)))
    table = np.array(rows, np.int64).reshape(-1, 4)
    return Traffic(
        np.maximum(table[:, 0], 0), table[:, 1], table[:, 2], table[:, 3], max_concurrency=max_concurrency or 0
    )
