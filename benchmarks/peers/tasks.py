"""What every engine is given: requests as token ids, the same for all.  Standard library only: each peer imports it in
an environment of its own."""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Sequence

Request = tuple[list[int], int]
"""Prompt token ids and the number of tokens to generate, whatever they are (end tokens are ignored)."""

FIRST_ID, LAST_ID = 3, 15999  # any tokenizer of 16,000 entries has them, and none is special
SINGLE_TOKENS = 64
REPEATS = 3
GRID_TOKENS = 16  # of each sequence that are timed
OWN_TOKENS = 4  # by which the prompts of one cell differ


def mixed(count: int = 64, seed: int = 1, scale: float = 1.0) -> list[Request]:
    """`count` requests that arrive together: prompts of 110 to 330 tokens, answers of 50 to 150, uniform.

    With the defaults 14,988 prompt and 6,396 output tokens.  `scale` shortens both alike, for slow machines.
    """
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        prompt, output = rng.randint(110, 330), rng.randint(50, 150)
        made.append((_ids(rng, prompt)[: round(prompt * scale)], max(2, round(output * scale))))
    return made


def one(prompt_tokens: int, output_tokens: int, seed: int = 2) -> list[Request]:
    return [(_ids(random.Random(seed), prompt_tokens), output_tokens)]


def _ids(rng: random.Random, count: int) -> list[int]:
    return [rng.randint(FIRST_ID, LAST_ID) for _ in range(count)]


Generate = Callable[[Sequence[Request]], int]
"""Serve the requests together, return how many tokens were generated."""


def run_task(name: str, generate: Generate, scale: float = 1.0, prompt_tokens: int = 512) -> float:
    """Tokens/s of one task, warmed up.

    mixed    prompt and output tokens of the mixed requests over the time for all of them
    prompt   prompt tokens over the time to the first token, median of three
    single   tokens/s of one sequence after its first token, behind a short prompt, median of three
    """
    generate(mixed(2, seed=3))
    if name == "mixed":
        requests = mixed(scale=scale)
        return _total(requests) / _seconds(generate, requests)
    if name == "prompt":
        return prompt_tokens / _median([_seconds(generate, one(prompt_tokens, 1, seed)) for seed in range(REPEATS)])
    if name == "single":
        return _median([_single(generate, seed) for seed in range(REPEATS)])
    raise SystemExit(f"there is no task {name!r}: mixed, prompt or single")


def run_grid(generate: Generate, batches: Sequence[int], contexts: Sequence[int]) -> list[dict[str, float]]:
    """Decoding rates by batch and context (see grid.py); needs a prefix cache.

    All prompts of a context are its first tokens and a few of their own, and each context begins with the one before:
    so every context is computed once.  A cell's rate is that of the tokens after the first, as in `single`.
    """
    generate(mixed(2, seed=3))
    text, cells = _ids(random.Random(5), max(contexts)), []
    for context in sorted(contexts):
        generate([(text[:context] + _ids(random.Random(6), OWN_TOKENS), 1)])
        for batch in batches:
            rates = []
            for repeat in range(REPEATS):
                rng = random.Random(1000 * repeat + batch)
                prompts = [text[:context] + _ids(rng, OWN_TOKENS) for _ in range(batch)]
                first_s = _seconds(generate, [(prompt, 1) for prompt in prompts])
                all_s = _seconds(generate, [(prompt, 1 + GRID_TOKENS) for prompt in prompts])
                rates.append(batch * GRID_TOKENS / (all_s - first_s))
            cells.append({"batch": batch, "context": context, "tokens_per_s": _median(rates)})
            cells[-1] |= {"least": min(rates), "most": max(rates)}
    return cells


def _single(generate: Generate, seed: int) -> float:
    first = _seconds(generate, one(16, 1, seed))
    return SINGLE_TOKENS / (_seconds(generate, one(16, 1 + SINGLE_TOKENS, seed)) - first)


def _seconds(generate: Generate, requests: Sequence[Request]) -> float:
    begin = time.perf_counter()
    generated = generate(requests)
    seconds = time.perf_counter() - begin
    expected = sum(output for _, output in requests)
    if generated != expected:
        raise SystemExit(f"{generated} tokens were generated instead of {expected}: this is not the same work")
    return seconds


def _total(requests: Sequence[Request]) -> int:
    return sum(len(ids) + output for ids, output in requests)


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def runner_arguments() -> argparse.Namespace:
    """The arguments that every `run_*.py` takes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--quantization")
    parser.add_argument("--scale", type=float, default=1.0, help="of the mixed requests' lengths")
    parser.add_argument("--batches", type=int, nargs="+", default=[])
    parser.add_argument("--contexts", type=int, nargs="+", default=[])
    given = parser.parse_args()
    given.prefix_caching = given.task == "grid"
    given.max_model_len = max([4096, *(context + 512 for context in given.contexts)])
    return given


def answer(given: argparse.Namespace, generate: Generate, **facts: object) -> None:
    """Run the task that was asked for, and print the runner's last line, which `compare.py` and `grid.py` read."""
    result: dict[str, object]
    if given.task == "grid":
        result = {"cells": run_grid(generate, given.batches, given.contexts)}
    else:
        result = {"tokens_per_s": run_task(given.task, generate, given.scale)}
    print(json.dumps(result | facts), flush=True)
