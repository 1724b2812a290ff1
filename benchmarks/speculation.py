"""What n-gram speculation gains and costs, on the demonstration model and on the engine's own loop.

    python benchmarks/speculation.py [--threads 2] [--tokens 96] [--repeats 3]

Three texts, none of which depends on what the random weights say:

repetitive   one token over and over: every draft is right, the most that can be gained
circling     a model's own greedy text, which soon runs in circles (as weak models' does)
random       64 tokens at random: there is almost always a draft, and almost never a right one, the most it can cost

Prints, for each text, number of sequences and number of drafts: milliseconds a step, tokens of a sequence a step, and
tokens/s beside those without speculation (all variants take turns; the median of the repeats, with least and most).
Then what looking drafts up costs the scheduler.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

from headrace.core.request import Request, SamplingParams
from headrace.core.speculation import NgramIndex
from headrace.engine.config import EngineArgs, resolve
from headrace.engine.engine import Engine

DRAFTS = (0, 2, 4, 8)
PROMPT = 64
TEXTS = {
    "repetitive": {"temperature": 0.0, "allowed_token_ids": (300,)},
    "circling": {"temperature": 0.0},
    "random": {"temperature": 1e6, "allowed_token_ids": tuple(range(300, 364)), "seed": 1},
}


def load(threads: int) -> dict[int, Engine]:
    """One engine for each number of drafts, all with one model."""
    engines: dict[int, Engine] = {}
    for drafts in DRAFTS:
        wanted = {"method": "ngram", "num_speculative_tokens": drafts, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
        config, _ = resolve(
            EngineArgs(
                num_threads=threads,
                max_model_len=1024,
                max_num_seqs=32,
                num_gpu_blocks_override=2048,
                enable_prefix_caching=False,
                speculative_config=wanted if drafts else None,
            )
        )
        engines[drafts] = Engine(config, engines[0].runner) if engines else Engine.from_config(config)
    return engines


def decode(engine: Engine, text: str, sequences: int, tokens: int) -> tuple[float, int]:
    """(seconds, steps) of `tokens` tokens for each of `sequences`, their prompts already computed."""
    rng = random.Random(5)
    for number in range(sequences):
        params = SamplingParams(max_tokens=tokens, ignore_eos=True, **TEXTS[text])  # type: ignore[arg-type]
        prompt = [rng.randrange(300, 364) for _ in range(PROMPT)]
        engine.add(Request(f"{number}", prompt, params))
    while engine.scheduler.num_waiting or any(not s.num_output_tokens for s in engine.scheduler.state.running):
        engine.step()
    before, steps = time.perf_counter(), 0
    done = sum(s.num_output_tokens for s in engine.scheduler.state.running)
    while engine.has_work:
        engine.step()
        steps += 1
    seconds = time.perf_counter() - before
    return seconds * sequences * tokens / (sequences * tokens - done), steps


def lookup_cost(context: int, sequences: int, vocabulary: int) -> tuple[float, float, float]:
    """(ms to take in a context once, ms a step for all sequences, entries a token)."""
    rng = random.Random(1)
    texts = [[rng.randrange(vocabulary) for _ in range(context)] for _ in range(sequences)]
    indexes = [NgramIndex(2, 4) for _ in texts]
    before = time.perf_counter()
    for index, tokens in zip(indexes, texts, strict=True):
        index.propose(tokens, 4)
    first_ms = 1e3 * (time.perf_counter() - before) / sequences
    best = float("inf")
    for _ in range(200):
        for tokens in texts:
            tokens.append(rng.randrange(vocabulary))
        before = time.perf_counter()
        for index, tokens in zip(indexes, texts, strict=True):
            index.propose(tokens, 4)
        best = min(best, 1e3 * (time.perf_counter() - before))
    return first_ms, best, sum(map(len, indexes[0]._tables)) / len(texts[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sequences", type=int, nargs="*", default=[1, 8, 32])
    args = parser.parse_args()
    engines = load(args.threads)
    print(f"{engines[0].config.dtype}, {args.threads} threads, prompts of {PROMPT} tokens, {args.tokens} tokens each")
    print("text        seqs  drafts  ms/step  tokens/step   tok/s (least .. most)   against none")
    for text in TEXTS:
        for sequences in args.sequences:
            seconds: dict[int, list[float]] = {drafts: [] for drafts in DRAFTS}
            steps: dict[int, int] = {}
            for _ in range(args.repeats):
                for drafts, engine in engines.items():
                    taken, steps[drafts] = decode(engine, text, sequences, args.tokens)
                    seconds[drafts].append(taken)
            total = sequences * args.tokens
            none = total / statistics.median(seconds[0])
            for drafts in DRAFTS:
                middle = statistics.median(seconds[drafts])
                rates = sorted(total / each for each in seconds[drafts])
                print(
                    f"{text:11} {sequences:4}  {drafts:6}  {1e3 * middle / steps[drafts]:7.2f}"
                    f"  {args.tokens / steps[drafts]:11.2f}   {total / middle:6.1f} ({rates[0]:.1f} .. {rates[-1]:.1f})"
                    f"   {total / middle / none:.2f}x",
                    flush=True,
                )
    for vocabulary in (64, 50_000):
        first, step, entries = lookup_cost(4096, 64, vocabulary)
        print(
            f"drafts of 64 sequences of 4,096 tokens, vocabulary {vocabulary}: {1e3 * step:.0f} us a step, "
            f"{first:.1f} ms a sequence at its first decode, {entries:.2f} entries a token"
        )


if __name__ == "__main__":
    main()
