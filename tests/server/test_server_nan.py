"""A request whose values are not finite, over HTTP: it fails, its neighbours and its prefix do not.

The NaN is in the checkpoint: the embedding of one token.  So it takes the way of every value, whatever computes it.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import openai
import pytest

pytest.importorskip("torch")

import torch
from real_engine import MODEL, real, settled, write_tiny_model
from safetensors.torch import save_file
from server_harness import in_loop

from headrace.engine.models.shape import read_model_shape
from headrace.engine.models.tensors import expected_tensors
from headrace.engine.weights import RandomWeights

POISON = 4000  # the token whose embedding is NaN
STEM = list(range(100, 164))  # four full blocks
TAIL = [POISON, *range(200, 240)]


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a head of its own: a NaN in the embedding then reaches nobody through the logits."""
    directory = write_tiny_model(tmp_path_factory.mktemp("models") / MODEL, tie_word_embeddings=False)
    names = expected_tensors(read_model_shape(directory))
    weights = {name: RandomWeights(names, torch.float32, seed=0).take(name) for name in names}
    weights["model.embed_tokens.weight"][POISON] = torch.nan
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@in_loop
async def test_nan_fails_one_request_and_leaves_nothing_behind(poisoned: Path) -> None:
    async with real(poisoned, load_format="safetensors", max_num_batched_tokens=48) as (engine, served):

        def ask(prompt: list[int], **more: object) -> object:
            arguments = {"model": MODEL, "prompt": prompt, "max_tokens": 12, "temperature": 0, **more}
            return served.openai.completions.create(**arguments, extra_body={"ignore_eos": True})

        sound = [STEM + [n] * (5 + 9 * n) for n in range(1, 7)]
        calm = [(await ask(prompt)).choices[0].text for prompt in sound]

        answers = await asyncio.gather(*(ask(prompt) for prompt in sound), ask(STEM + TAIL), return_exceptions=True)
        *texts, failure = answers
        assert [answer.choices[0].text for answer in texts] == calm
        assert isinstance(failure, openai.InternalServerError) and "NaN" in failure.message

        stream = await ask(STEM + TAIL, stream=True)
        with pytest.raises(openai.APIError, match="NaN"):
            [chunk async for chunk in stream]
        health = await served.http.get("/health")
        assert health.status_code == 200, "a request failed, not the engine"

        # The blocks of what failed were forgotten, its stem's too; the first one computes that again for the others.
        after = [await ask(prompt) for prompt in sound]
        assert [answer.choices[0].text for answer in after] == calm
        assert all(answer.usage.prompt_tokens_details.cached_tokens >= len(STEM) for answer in after[1:])
        assert (await served.http.post("/reset_prefix_cache")).status_code == 200
        assert [(await ask(prompt)).choices[0].text for prompt in sound] == calm
        stats = await settled(engine)
    assert stats.kv_blocks_free == stats.kv_blocks_total
