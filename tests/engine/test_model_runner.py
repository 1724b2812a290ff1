"""A batch in, tokens out: empty batches, failures, memory, and the demonstration model."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from headrace.core.batch import Batch, Chunk
from headrace.core.request import Request, SamplingParams
from headrace.core.scheduler import Scheduler, SchedulerConfig
from headrace.core.sequence import Sequence
from headrace.engine import kernels
from headrace.engine.config import EngineArgs, EngineConfig, resolve
from headrace.engine.model_runner import ModelRunner
from headrace.engine.models.layers import padded_rows

CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}


def config(directory: Path, **overrides: object) -> EngineConfig:
    (directory / "config.json").write_text(json.dumps(CONFIG))
    values: dict[str, object] = {
        "model": "tiny",
        "served_model_names": ("tiny",),
        "tokenizer": "",
        "dtype": "float32",
        "load_format": "dummy",
        "seed": 0,
        "max_model_len": 128,
        "max_num_batched_tokens": 64,
        "max_num_seqs": 8,
        "block_size": 4,
        "num_kv_blocks": 64,
        "enable_chunked_prefill": True,
        "scheduler_version": "v1",
        "scheduling_policy": "fcfs",
        "enable_prefix_caching": False,
        "long_prefill_token_threshold": 0,
        "num_threads": 1,
        "generation_config": "vllm",
        "chat_template": None,
        "model_path": directory,
    }
    return EngineConfig(**(values | overrides))  # type: ignore[arg-type]


def greedy(request_id: str, prompt: tuple[int, ...], blocks: list[int], **params: object) -> Sequence:
    settings = SamplingParams(temperature=0.0, **params)  # type: ignore[arg-type]
    sequence = Sequence(Request(request_id, prompt, settings))
    sequence.block_table = blocks
    return sequence


def poison(runner: ModelRunner, layer: int, blocks: list[int], value: float) -> None:
    """What an overflow in an earlier step would have left in the cache."""
    with torch.inference_mode():
        runner._cache.layer(layer)[:, blocks] = value


def test_an_empty_batch_needs_no_model(tmp_path: Path) -> None:
    output = ModelRunner(config(tmp_path)).run(Batch(0, ()))
    assert output.result.tokens == ()
    assert output.logprobs == {}


def test_only_chunks_that_reach_the_end_sample(tmp_path: Path) -> None:
    runner = ModelRunner(config(tmp_path))
    long, short = greedy("long", tuple(range(10)), [3, 1, 2]), greedy("short", (5, 6), [7])
    first = runner.run(Batch(0, (Chunk(long, 0, 6, False), Chunk(short, 0, 2, True))))
    assert len(first.result.tokens) == 1
    second = runner.run(Batch(1, (Chunk(long, 6, 4, True),)))
    whole = ModelRunner(config(tmp_path)).run(Batch(0, (Chunk(long, 0, 10, True), Chunk(short, 0, 2, True))))
    assert second.result.tokens + first.result.tokens == whole.result.tokens


def test_tokens_come_in_the_order_of_the_batch(tmp_path: Path) -> None:
    """The runner lays decodes out first and by length; the scheduler must not notice."""
    sequences = [greedy(str(i), tuple(range(i + 1)), [2 * i, 2 * i + 1]) for i in range(6)]
    chunks = [Chunk(each, 0, each.num_tokens, True) for each in sequences]
    forwards = ModelRunner(config(tmp_path)).run(Batch(0, tuple(chunks))).result.tokens
    backwards = ModelRunner(config(tmp_path)).run(Batch(0, tuple(chunks[::-1]))).result.tokens
    assert forwards == backwards[::-1]


def test_nan_fails_one_request_and_spares_its_neighbours(tmp_path: Path) -> None:
    runner = ModelRunner(config(tmp_path))
    healthy, sick = greedy("healthy", (1, 2, 3), [0]), greedy("sick", (4, 5, 6), [1])
    prefill = (Chunk(healthy, 0, 3, True), Chunk(sick, 0, 3, True))
    first = runner.run(Batch(0, prefill)).result
    assert not first.failed
    expected = ModelRunner(config(tmp_path))
    expected.run(Batch(0, prefill))
    for sequence, token in zip((healthy, sick), first.tokens, strict=True):
        sequence.output_token_ids.append(token)
        sequence.num_tokens += 1
    poison(runner, layer=0, blocks=[1], value=torch.nan)

    decode = (Chunk(healthy, 3, 1, True), Chunk(sick, 3, 1, True))
    result = runner.run(Batch(1, decode)).result
    assert list(result.failed) == ["sick"]
    assert "NaN" in result.failed["sick"]
    assert len(result.tokens) == 2
    assert result.tokens[0] == expected.run(Batch(1, decode)).result.tokens[0]

    # The next owner of the block is not harmed by what the sick one left there.
    successor = greedy("successor", (7, 8), [1])
    after = runner.run(Batch(2, (Chunk(successor, 0, 2, True),))).result
    assert not after.failed
    assert after.tokens == ModelRunner(config(tmp_path)).run(Batch(0, (Chunk(successor, 0, 2, True),))).result.tokens


def test_a_failure_before_the_last_chunk_is_reported_too(tmp_path: Path) -> None:
    runner = ModelRunner(config(tmp_path))
    sequence = greedy("sick", tuple(range(12)), [0, 1, 2])
    poison(runner, layer=1, blocks=[0], value=torch.inf)
    result = runner.run(Batch(0, (Chunk(sequence, 4, 4, False),))).result
    assert list(result.failed) == ["sick"]
    assert torch.isfinite(runner._cache.layer(1)).all()


def test_a_failed_request_ends_and_the_loop_goes_on(tmp_path: Path) -> None:
    runner = ModelRunner(config(tmp_path))
    scheduler = Scheduler(SchedulerConfig(max_model_len=128, block_size=4, num_blocks=64, max_num_seqs=8))
    for name in ("a", "b"):
        scheduler.add(Request(name, (1, 2, 3), SamplingParams(temperature=0.0, max_tokens=4)))
    events = []
    for step in range(4):
        batch = scheduler.schedule()
        if step == 2:
            poison(runner, layer=0, blocks=batch.chunks[1].sequence.block_table, value=torch.nan)
        events += scheduler.commit(batch, runner.run(batch).result)
    ends = {event.request_id: str(event.finish_reason) for event in events if event.finish_reason}
    assert ends == {"a": "length", "b": "error"}
    assert not scheduler.has_work


def test_memory_is_what_the_formulas_say(tmp_path: Path) -> None:
    runner = ModelRunner(config(tmp_path))
    memory = runner.memory_bytes()
    assert memory["kv_cache"] == 2 * 2 * 2 * 8 * 4 * (64 + 1) * 4  # K and V, layers, heads, head size, slots, bytes
    linear = 2 * (32 * (32 + 2 * 16) + 32 * 32 + 3 * 32 * 48)
    copies = 2 if kernels.native() is None else 1  # a native head looks up rows as well
    embedding_and_head, rotary = copies * 64 * 32, 2 * 128 * 8
    assert memory["weights"] == 4 * (linear + embedding_and_head + rotary)
    assert runner.step_weight_bytes == 4 * (linear + 64 * 32)  # the head is read in each step, one matrix or two


def test_padding_is_small_and_bounds_the_number_of_shapes() -> None:
    counts = range(1, 4097)
    assert all(count <= padded_rows(count) for count in counts)
    assert all(padded_rows(count) - count < max(4, count / 4) for count in counts)
    assert len({padded_rows(count) for count in counts}) < 180


def test_the_demonstration_model_follows_its_context() -> None:
    """Random weights, but not a stuck needle: greedy text neither repeats one token nor ignores the prompt."""
    settings, _ = resolve(EngineArgs(dtype="float32", max_model_len=256, num_gpu_blocks_override=64, num_threads=1))
    runner = ModelRunner(settings)
    runner.warm_up()
    scheduler = Scheduler(SchedulerConfig(max_model_len=256, block_size=settings.block_size, num_blocks=64))
    params = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
    for name, prompt in {"a": (100, 200, 300), "b": (101, 200, 300)}.items():
        scheduler.add(Request(name, prompt, params))
    outputs: dict[str, list[int]] = {"a": [], "b": []}
    while scheduler.has_work:
        batch = scheduler.schedule()
        for event in scheduler.commit(batch, runner.run(batch).result):
            outputs[event.request_id].append(event.token_id or 0)
    assert min(len(set(tokens)) for tokens in outputs.values()) > 12
    assert outputs["a"] != outputs["b"]
