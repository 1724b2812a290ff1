"""Log-probabilities of prompts: the plain formula on transformers' logits, whatever the engine does meanwhile."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("transformers")

import torch
from parity_world import engine_config, greedy_requests, prompts_of_mixed_length, save_tiny_model

from headrace.core.request import Request
from headrace.core.scheduler import Scheduler
from headrace.engine.config import scheduler_config
from headrace.engine.model_runner import ModelRunner
from headrace.engine.outputs import TokenLogprob

PROMPTS = prompts_of_mixed_length(6, 90)
TOP = 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    directory = tmp_path_factory.mktemp("qwen3")
    return directory, save_tiny_model("Qwen3ForCausalLM", directory)


def run(directory: Path, requests: list[Request], **overrides: object) -> tuple[dict[str, list[TokenLogprob]], int]:
    """Everything that the runner told about the prompts, and how many preemptions there were."""
    config = engine_config(directory, **overrides)
    runner, scheduler = ModelRunner(config), Scheduler(scheduler_config(config))
    told: dict[str, list[TokenLogprob]] = {}
    for request in requests:
        scheduler.add(request)
    while scheduler.has_work:
        batch = scheduler.schedule()
        output = runner.run(batch)
        for name, entries in output.prompt_logprobs.items():
            assert name not in told, "told once"
            told[name] = list(entries)
        scheduler.commit(batch, output.result)
    return told, scheduler.counters.preemptions


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"max_num_batched_tokens": 32},
        {
            "num_kv_blocks": 13,
            "max_model_len": 200,
        },  # too few for all: some are preempted, and compute their prompt twice
        {"enable_prefix_caching": True},
        {"scheduler_version": "v0", "enable_chunked_prefill": False, "max_model_len": 200},
    ],
    ids=["whole", "chunks", "preempted", "prefix-cache", "v0"],
)
def test_they_equal_the_log_softmax_of_transformers(
    model: tuple[Path, torch.nn.Module], overrides: dict[str, object]
) -> None:
    directory, oracle = model
    requests = [
        replace(each, params=replace(each.params, prompt_logprobs=TOP)) for each in greedy_requests(PROMPTS, 40)
    ]
    if "enable_prefix_caching" in overrides:  # the second of each pair finds its prompt in the cache, and skips it
        requests += [replace(each, request_id=f"again-{each.request_id}") for each in requests]
    told, preemptions = run(directory, requests, **overrides)
    assert (preemptions > 0) == ("num_kv_blocks" in overrides)
    assert set(told) == {each.request_id for each in requests}
    for request in requests:
        ids = list(request.prompt_token_ids)
        with torch.no_grad():
            exact = torch.log_softmax(oracle(torch.tensor([ids])).logits[0].float(), dim=-1)
        assert len(told[request.request_id]) == len(ids) - 1
        for position, entry in enumerate(told[request.request_id]):
            row = exact[position]
            assert entry.token_id == ids[position + 1]
            assert entry.logprob == pytest.approx(float(row[entry.token_id]), abs=2e-4)
            assert entry.rank == 1 + int((row > row[entry.token_id]).sum())
            assert [token for token, _ in entry.top] == row.topk(TOP).indices.tolist()
