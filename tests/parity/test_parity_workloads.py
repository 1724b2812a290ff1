"""Random workloads on random settings: every request gets, to the bit, what it gets alone on a plain engine.

Prefix caching, chunking, batching, speculation, preemption for want of KV blocks, aborts of others: none changes an
answer, greedy or sampled with a seed.  `scripts/check-slow` runs 500 of them.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from parity_world import engine_config, save_tiny_model

from headrace.core.invariants import check, check_batch, snapshot
from headrace.core.repetition import RepetitionDetection
from headrace.core.request import Request, SamplingParams
from headrace.core.scheduler import Scheduler, Speculation
from headrace.core.thinking import ThinkingBudget
from headrace.engine.attention.native import supports
from headrace.engine.config import EngineConfig, scheduler_config
from headrace.engine.model_runner import ModelRunner

VOCAB = 24  # so few that answers run in circles, and drafts are often right
LONGEST = 120
POLICIES = (("v1", True), ("v1", False), ("v0", True), ("v0", False))


@dataclass
class Outcome:
    tokens: list[int] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    finish: str = ""


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    shape = {"vocab_size": VOCAB, "num_hidden_layers": 2, "hidden_size": 48, "intermediate_size": 64}
    save_tiny_model("Qwen3ForCausalLM", directory, **shape)
    return directory


def draw_config(rng: random.Random, directory: Path, longest: int) -> EngineConfig:
    """Settings for requests of up to `longest` tokens."""
    version, chunked = rng.choice(POLICIES)
    block_size = rng.choice((1, 4, 8, 16, 16, 32))
    seats = rng.choice((1, 4, 8, 8))
    budget = max(seats, rng.choice((8, 16, 48, 200)))
    caching = rng.random() < 0.6
    if not chunked:
        budget = max(budget, LONGEST)
    if caching and (version, chunked) == ("v0", True):
        budget += -budget % block_size
    most, least = sorted((rng.randint(1, 4), rng.randint(1, 4)), reverse=True)
    return engine_config(
        directory,
        scheduler_version=version,
        enable_chunked_prefill=chunked,
        block_size=block_size,
        max_num_seqs=seats,
        max_num_batched_tokens=budget,
        max_model_len=LONGEST,
        # From what one sequence needs to what all of them do.
        num_kv_blocks=int(-(-longest // block_size) * rng.choice((1, 1, 2, 8))) + (version == "v0"),
        enable_prefix_caching=caching,
        scheduling_policy=rng.choice(("fcfs", "fcfs", "priority")),
        long_prefill_token_threshold=rng.choice((0, 0, 7)) if version == "v1" and chunked else 0,
        speculation=Speculation(rng.randint(1, 6), most, least) if rng.random() < 0.75 else None,
    )


def draw_requests(rng: random.Random) -> list[Request]:
    shared = [rng.randrange(VOCAB) for _ in range(60)]
    requests = []
    for number in range(rng.randint(4, 9)):
        prompt = shared[: rng.choice((16, 33, 40))] if rng.random() < 0.6 else []
        phrase = [rng.randrange(VOCAB) for _ in range(rng.randint(1, 6))]
        prompt = [*prompt, *phrase * rng.randint(1, 4), *phrase[: rng.randint(0, 2)]]
        max_tokens = rng.choice((1, 12, 24, 24))
        params: dict[str, Any] = {"max_tokens": max_tokens, "temperature": 0.0}
        if rng.random() < 0.25:
            params |= {"temperature": 0.8, "seed": rng.randrange(1 << 32), "top_p": rng.choice((1.0, 0.9))}
        if rng.random() < 0.25:
            extra = {"repetition_penalty": 1.3}, {"frequency_penalty": 0.6}, {"bad_words_token_ids": (tuple(phrase),)}
            params |= rng.choice(extra)
        params |= {"min_tokens": rng.randint(0, max_tokens)} if rng.random() < 0.3 else {}
        params |= {"stop_token_ids": (rng.randrange(VOCAB),)} if rng.random() < 0.3 else {}
        params |= {"logprobs": 2} if rng.random() < 0.3 else {}
        if rng.random() < 0.3:
            rules: tuple[dict[str, Any], ...] = (
                {"repetition_detection": RepetitionDetection(rng.randint(1, 4), 0, rng.randint(2, 3))},
                {"thinking": ThinkingBudget.behind(prompt, rng.randint(0, 6), phrase[0], phrase[-1] ^ 1)},
                {"logprobs": 2, "logprob_token_ids": (3, rng.randrange(VOCAB))},
            )
            params |= rng.choice(rules)
        requests.append(
            Request(
                f"r{number}",
                tuple(prompt),
                SamplingParams(**params, ignore_eos=rng.random() < 0.5),
                frozenset({0}),
                priority=rng.randint(0, 2),
                arrived=float(number),
                cache_salt=rng.choice(("", "", "tenant")),
            )
        )
    return requests


def serve(
    config: EngineConfig, runner: ModelRunner, requests: Sequence[Request], rng: random.Random | None = None
) -> tuple[dict[str, Outcome], Scheduler]:
    """Run requests to their ends; with `rng` they arrive while others run, and some are aborted."""
    scheduler = Scheduler(scheduler_config(config))
    outcomes: dict[str, Outcome] = {}
    pace = 1.0 if rng is None else rng.choice((0.3, 1.0))
    pending = list(requests)
    while pending or scheduler.has_work:
        while pending and (rng is None or rng.random() < pace):
            request = pending.pop(0)
            scheduler.add(request)
            outcomes[request.request_id] = Outcome()
        before = snapshot(scheduler)
        batch = scheduler.schedule()
        check_batch(scheduler, batch, before)
        output = runner.run(batch)
        if rng is not None and batch.chunks and rng.random() < 0.01:
            name = rng.choice(batch.chunks).sequence.request_id
            scheduler.abort(name)
            outcomes[name].finish = "abort"
        for event in scheduler.commit(batch, output.result):
            outcome = outcomes[event.request_id]
            assert event.error is None and event.token_id is not None
            outcome.tokens.append(event.token_id)
            outcome.finish = str(event.finish_reason or "")
        for name, logprobs in output.logprobs.items():
            outcomes[name].logprobs += logprobs
        check(scheduler)
    assert scheduler.blocks.num_free == config.num_kv_blocks
    return outcomes, scheduler


def plain_runners(directory: Path) -> dict[bool, ModelRunner]:
    """By whether attention is native, which follows from the block size: each kind of kernel keeps its own bits."""
    made = {}
    for block_size in (8, 16):
        blocks = -(-LONGEST // block_size)
        config = engine_config(directory, max_model_len=LONGEST, num_kv_blocks=blocks, block_size=block_size)
        runner = ModelRunner(config)
        made[supports(block_size, runner.shape.head_dim)] = runner
    return made


def run_workload(seed: int, directory: Path, plains: dict[bool, ModelRunner]) -> Counter[str]:
    """Fails when an answer differs; returns what happened, so that nobody proves nothing."""
    rng = random.Random(seed)
    requests = draw_requests(rng)
    longest = max(len(request.prompt_token_ids) + request.params.max_tokens for request in requests)
    config = draw_config(rng, directory, min(longest, LONGEST))
    runner = ModelRunner(config)
    plain = plains[supports(config.block_size, runner.shape.head_dim)]
    together, scheduler = serve(config, runner, requests, rng)
    for request in requests:
        alone = serve(plain.config, plain, [request])[0][request.request_id]
        outcome = together[request.request_id]
        if outcome.finish == "abort":
            assert outcome.tokens == alone.tokens[: len(outcome.tokens)], f"seed {seed}, {request.request_id}"
            continue
        # Log-probabilities of drafts behind an end token are computed and belong to nobody.
        outcome.logprobs = outcome.logprobs[: len(outcome.tokens)]
        assert outcome == alone, f"seed {seed}, {request.request_id}"
    counters = scheduler.counters
    return Counter(
        requests=len(requests),
        tokens=sum(len(outcome.tokens) for outcome in together.values()),
        preemptions=counters.preemptions,
        cached=counters.prefix_hits + counters.preempted_hits,
        drafts=counters.draft_tokens,
        accepted=counters.accepted_tokens,
        aborted=sum(outcome.finish == "abort" for outcome in together.values()),
    )


def run_workloads(seeds: range, directory: Path) -> Counter[str]:
    plains = plain_runners(directory)
    total: Counter[str] = Counter()
    for seed in seeds:
        total += run_workload(seed, directory, plains)
    for what in ("preemptions", "cached", "drafts", "accepted"):
        assert total[what] > len(seeds) // 2, f"{what}: {total}"
    return total


def test_a_handful_of_random_workloads(model_dir: Path) -> None:
    run_workloads(range(8), model_dir)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_500_random_workloads(part: int, model_dir: Path) -> None:
    print(dict(run_workloads(range(1000 + 50 * part, 1050 + 50 * part), model_dir)))
