"""NaN in one row, in a prompt or at a random step of an answer: that request fails, the others keep every token.

The NaN is in the checkpoint: one token's embedding.  So it takes the way of every value, whatever computes it.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from nan_weights import poison
from parity_world import VOCAB, Loop, engine_config, save_tiny_model

from headrace.core.batch import Batch
from headrace.core.request import Request, SamplingParams
from headrace.engine.config import EngineConfig
from headrace.engine.model_runner import ModelRunner

NEW_TOKENS = 12
STEM = [random.Random(99).randrange(VOCAB) for _ in range(16)]  # whole blocks that all share
# Blocks for two or three at a time: those that the NaN was in are soon another's.
SETTINGS = {"enable_prefix_caching": True, "max_num_batched_tokens": 32}
POOLS = {4: 48, 16: 14}  # blocks by their size: torch computes with the small ones, native kernels with the others


class Watched(Loop):
    """Remembers where each request began to compute: what lies before was found in the cache."""

    def generate(self, requests: Sequence[Request]) -> dict[str, list[int]]:
        self.errors.clear()
        self.began: dict[str, int] = {}
        schedule = self.scheduler.schedule

        def watch() -> Batch:
            batch = schedule()
            for sequence, start, *_ in batch.chunks:
                self.began.setdefault(sequence.request_id, start)
            return batch

        self.scheduler.schedule = watch  # type: ignore[method-assign]
        try:
            return super().generate(requests)
        finally:
            self.scheduler.schedule = schedule  # type: ignore[method-assign]


def config(directory: Path, block_size: int) -> EngineConfig:
    return engine_config(directory, block_size=block_size, num_kv_blocks=POOLS[block_size], **SETTINGS)


def draw_requests(chance: random.Random) -> list[Request]:
    """Sampled, each with its seed: greedy answers of so small a model are the same few tokens."""
    requests = []
    for number in range(6):
        prompt = STEM + [chance.randrange(VOCAB) for _ in range(chance.randint(3, 40))]
        params = SamplingParams(max_tokens=NEW_TOKENS, temperature=1.0, seed=chance.randrange(1 << 32), ignore_eos=True)
        requests.append(Request(f"r{number}", tuple(prompt), params))
    return requests


def run_trial(seed: int, sound: Path, directory: Path, runner: ModelRunner) -> str:
    """Where the NaN was: "prompt" or "answer"."""
    chance = random.Random(seed)
    requests = draw_requests(chance)
    calm = Loop(runner.config, runner).generate(requests)
    # All tokens that are computed: the last of an answer never is.
    computed = {each.request_id: [*each.prompt_token_ids, *calm[each.request_id][:-1]] for each in requests}
    victim = chance.choice(requests)
    name, prompt = victim.request_id, list(victim.prompt_token_ids)
    others = {token for each, tokens in computed.items() if each != name for token in tokens}
    places = [index for index, token in enumerate(computed[name]) if token not in others]
    wanted = [index for index in places if (index >= len(prompt)) == (seed % 2 == 1)] or places
    token = computed[name][chance.choice(wanted)]
    place = computed[name].index(token)

    poison(sound, directory, token, chance.choice((float("nan"), float("inf"), float("-inf"))))
    loop = Watched(config(directory, runner.config.block_size))
    assert loop.generate(requests) == calm | {name: calm[name][: max(0, place + 1 - len(prompt))]}
    assert set(loop.errors) == {name} and "NaN" in loop.errors[name]
    assert loop.scheduler.blocks.num_free == runner.config.num_kv_blocks

    # The same once more, with what was computed before the NaN asked for as well: what the cache has is sound.
    before = Request("before", tuple(computed[name][:place]), SamplingParams(max_tokens=1, temperature=0.0))
    again = [*requests, before]
    expected = Loop(runner.config, runner).generate(again)[before.request_id]
    assert loop.generate(again) == calm | {name: calm[name][: max(0, place + 1 - len(prompt))], "before": expected}
    assert set(loop.errors) == {name}
    assert loop.began[name] <= place, "a block with NaN in it was found"
    assert loop.scheduler.blocks.num_free == runner.config.num_kv_blocks
    return "answer" if place >= len(prompt) else "prompt"


@pytest.mark.parametrize("trials", [6, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("block_size", POOLS)
def test_a_bad_row_fails_its_own_request_and_is_never_found_again(block_size: int, trials: int, tmp_path: Path) -> None:
    sound = tmp_path / "sound"
    save_tiny_model("Qwen3ForCausalLM", sound, tie_word_embeddings=False)
    runner = ModelRunner(config(sound, block_size))
    places = Counter(run_trial(seed, sound, tmp_path / "poisoned", runner) for seed in range(trials))
    assert min(places["prompt"], places["answer"]) >= trials // 4, places
