"""The fast path: the compiled twin of the scheduling policies (`_fast.cpp`), called with the same values.

It covers every scheduler setting and every `StepCost`; a cost model of another type needs the step-by-step loop.
"""

from __future__ import annotations

from typing import Any

from headrace.errors import ConfigError
from headrace.lab.sim.cost import StepCost, duration_ns
from headrace.lab.sim.outcome import Outcome
from headrace.lab.sim.server import Server
from headrace.lab.sim.stepwise import Decision
from headrace.lab.sim.traffic import Traffic

try:
    from headrace.lab.sim import _fast
except ImportError:  # built without a compiler: the step-by-step loop gives the same results, some 100 times slower
    _fast = None  # type: ignore[assignment]


def applies(server: Server) -> bool:
    """Whether the fast path can simulate this server here."""
    return _fast is not None and type(server.cost) is StepCost


def simulate_fast(
    traffic: Traffic, server: Server, *, decisions: list[Decision] | None = None, jumps: bool = True
) -> Outcome:
    """As `simulate_stepwise`; `jumps` off takes every step by itself, for tests.

    Raises ConfigError where `applies` is False.
    """
    config, cost, front = server.config, server.cost, server.front
    if _fast is None or not isinstance(cost, StepCost):
        raise ConfigError("the fast path needs the compiled part of headrace and a cost of type StepCost")
    sent, queued, scheduled, ended, status, preemptions, segments, ends, used, runs, log = _fast.simulate(
        config.policy,
        [
            config.max_num_batched_tokens,
            config.max_num_seqs,
            config.max_model_len,
            config.block_size,
            config.num_blocks,
            config.long_prefill_token_threshold,
            config.watermark_blocks,
        ],
        config.enable_prefix_caching,
        config.scheduling_policy == "fcfs",
        config.reserve_full,
        config.hash_at,
        [
            cost.base_s,
            cost.token_s,
            cost.kv_token_s,
            cost.floor_s,
            cost.pair_s,
            cost.sequence_s,
            cost.row_s,
            cost.decode_only_s,
        ],
        list(cost.knots),
        duration_ns(front.delay_s),
        duration_ns(front.each_s),
        traffic.max_concurrency,
        traffic.planned_ns,
        traffic.prompt_tokens,
        traffic.output_tokens,
        traffic.max_tokens,
        traffic.priority,
        traffic.prefix_group,
        traffic.prefix_tokens,
        decisions is not None,
        jumps,
    )
    if decisions is not None:
        decisions += _decisions(log.tolist())
    return Outcome(
        traffic,
        config,
        sent_ns=sent,
        queued_ns=queued,
        scheduled_ns=scheduled,
        ended_ns=ended,
        status=status,
        preemptions=preemptions,
        segments=segments,
        ends_ns=ends,
        blocks_used=used,
        runs=runs,
    )


def _decisions(log: list[int]) -> list[Decision]:
    found = []
    position = 0

    def take(width: int) -> list[Any]:
        nonlocal position
        count = log[position]
        flat = log[position + 1 : position + 1 + width * count]
        position += 1 + width * count
        return flat if width == 1 else list(zip(*[iter(flat)] * width, strict=True))

    while position < len(log):
        found.append(Decision(tuple(take(3)), tuple(take(1)), tuple(take(1)), tuple(take(1))))
    return found
