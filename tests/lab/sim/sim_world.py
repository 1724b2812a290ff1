"""Small random worlds for the simulator: what bites is few blocks, few seats and small budgets."""

from __future__ import annotations

import random

import numpy as np

from headrace.core.state import SchedulerConfig
from headrace.lab.sim import FrontEnd, Server, StepCost, Traffic

POLICIES = ("v1", "v1-whole", "v0", "v0-chunked")


def random_case(seed: int) -> tuple[Traffic, Server]:
    """Traffic and a server, from a seed; about a third of them preempt."""
    rng = random.Random(seed)
    count = rng.randint(3, 30)
    longest_prompt, longest_output = rng.choice((8, 40, 100)), rng.choice((2, 40, 80, 80))
    prompts = [rng.randint(1, longest_prompt) for _ in range(count)]
    outputs = [rng.randint(1, longest_output) for _ in range(count)]
    most = [o + (rng.randint(0, 10) if rng.random() < 0.2 else 0) for o in outputs]
    rate = rng.choice((0.5, 5.0, 50.0, np.inf, np.inf))
    times = np.cumsum([0.0 if np.isinf(rate) else rng.expovariate(rate) for _ in range(count)])
    groups = [rng.randint(0, 2) for _ in range(count)]
    shared = [rng.randint(0, p) if rng.random() < 0.5 else 0 for p in prompts]
    traffic = Traffic(
        np.rint(times * 1e9).astype(np.int64),
        np.array(prompts),
        np.array(outputs),
        np.array(most),
        priority=np.array([rng.randint(0, 2) for _ in range(count)]),
        prefix_group=np.array(groups),
        prefix_tokens=np.array(shared),
        max_concurrency=rng.choice((0, 0, 0, 1, 4)),
    )
    return traffic, Server(_config(rng, traffic), _cost(rng), rng.choice((FrontEnd(), FrontEnd(0.01, 0.003))))


def _config(rng: random.Random, traffic: Traffic) -> SchedulerConfig:
    policy = rng.choice(POLICIES)
    size = rng.choice((1, 4, 16))
    longest = int((traffic.prompt_tokens + traffic.max_tokens).max())
    max_model_len = longest if rng.random() < 0.8 else max(2, longest - rng.randint(0, longest // 2))
    budget = rng.choice((8, 16, 64, 512))
    caching = rng.random() < 0.4
    if policy == "v1-whole":
        budget = max(budget, max_model_len)
    if policy == "v0-chunked" and caching:
        budget = -(-budget // size) * size
    least = -(-longest // size)
    blocks = rng.choice((least, least, least, least, least + 2, 2 * least, 50 * least))
    return SchedulerConfig(
        policy=policy,
        max_num_batched_tokens=budget,
        max_num_seqs=rng.choice([s for s in (1, 2, 4, 8, 8, 64, 64) if s <= budget]),
        max_model_len=max_model_len,
        block_size=size,
        num_blocks=blocks,
        enable_prefix_caching=caching,
        long_prefill_token_threshold=rng.choice((0, 0, 5)) if policy.startswith("v1") and max_model_len >= 5 else 0,
        scheduling_policy=rng.choice(("fcfs", "fcfs", "priority")),
        reserve_full=rng.random() < 0.7,
        watermark=rng.choice((None, None, 0.0, 0.1)),
        hash_at=rng.choice((None, "plan", "after_plan", "after_step")),
    )


def _cost(rng: random.Random) -> StepCost:
    if rng.random() < 0.2:
        return StepCost(0.01, 0.0007, 8e-7, knots=((1.0, 0.01), (16.0, 0.013), (64.0, 0.05)))
    return StepCost(
        rng.choice((0.0, 0.0125)),
        7.3e-4,
        rng.choice((0.0, 8.4e-7)),
        floor_s=rng.choice((0.0, 0.0145)),
        pair_s=rng.choice((0.0, 1e-9)),
        sequence_s=rng.choice((0.0, 1e-5)),
        row_s=rng.choice((0.0, 2e-5)),
        decode_only_s=rng.choice((0.0, 0.015)),
    )
