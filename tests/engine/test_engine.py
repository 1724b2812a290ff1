"""The synchronous loop: whole answers without a server, from a scripted model and from a real tiny one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from engine_world import CONFIG, LetterTokenizer, ScriptedRunner, config, request

from headrace.core.repetition import RepetitionDetection
from headrace.core.request import FinishReason, Request, SamplingParams
from headrace.core.scheduler import Speculation
from headrace.engine.config import EngineArgs, resolve
from headrace.engine.demo import DEMO_DIRECTORY
from headrace.engine.engine import Engine, generate
from headrace.errors import InvalidRequest


def test_answers_come_whole_and_in_the_order_of_the_requests() -> None:
    engine = Engine(CONFIG, ScriptedRunner())
    requests = [request("long", max_tokens=6), request("short", max_tokens=2), request("stopped", stop=("c",))]
    outputs = generate(engine, LetterTokenizer(), requests)  # type: ignore[arg-type]
    assert [(output.request_id, output.text) for output in outputs] == [
        ("long", "abcdef"),
        ("short", "ab"),
        ("stopped", "ab"),
    ]
    assert [output.finish_reason for output in outputs] == [FinishReason.LENGTH] * 2 + [FinishReason.STOP]
    assert outputs[0].token_ids == tuple(map(ord, "abcdef"))
    assert not engine.has_work
    assert engine.scheduler.blocks.num_free == CONFIG.num_kv_blocks


def test_one_request_that_cannot_be_served_leaves_nothing_behind() -> None:
    engine = Engine(CONFIG, ScriptedRunner())
    with pytest.raises(InvalidRequest):
        generate(engine, LetterTokenizer(), [request("good"), request("empty", prompt="")])  # type: ignore[arg-type]
    assert not engine.has_work


def test_a_batch_without_chunks_needs_no_model() -> None:
    """V0 drops what can never fit, in a step that computes nothing."""
    runner = ScriptedRunner()
    engine = Engine(config(scheduler_version="v0", enable_chunked_prefill=False), runner)
    (output,) = generate(engine, LetterTokenizer(), [request(prompt="x" * 100)])  # type: ignore[arg-type]
    assert (output.finish_reason, output.text) == (FinishReason.LENGTH, "")
    assert not runner.entered.acquire(blocking=False)
    assert engine.stats().num_steps == 0


def test_statistics_count_what_was_computed() -> None:
    engine = Engine(CONFIG, ScriptedRunner())
    generate(engine, LetterTokenizer(), [request("a", max_tokens=3), request("b", max_tokens=4)])  # type: ignore[arg-type]
    stats = engine.stats()
    assert (stats.prompt_tokens, stats.generation_tokens, stats.num_steps) == (10, 7, 4)
    assert (stats.num_running, stats.num_waiting, stats.kv_blocks_free) == (0, 0, CONFIG.num_kv_blocks)


def test_a_step_may_bring_several_tokens_of_a_request() -> None:
    """The model says "abcabc…", which the prompt has said before: drafts are right, and told as ever."""
    said = [ord(letter) for letter in "abc"]
    engine = Engine(
        config(speculation=Speculation(4, 3, 2)), ScriptedRunner(lambda row: said[row.num_output_tokens % 3])
    )
    asked = [
        request("plain", "xabcabcabc", max_tokens=12),
        request("stopped", "xabcabcabc", max_tokens=12, stop=("ca",)),
        request("scored", "xabcabcabc", max_tokens=7, logprobs=1),
    ]
    plain, stopped, scored = generate(engine, LetterTokenizer(), asked)  # type: ignore[arg-type]
    assert (plain.text, plain.num_output_tokens) == ("abcabcabcabc", 12)
    assert (stopped.text, stopped.stop_reason, stopped.num_output_tokens) == ("ab", "ca", 4)
    assert scored.logprobs is not None
    assert [entry.token_id for entry in scored.logprobs] == list(scored.token_ids) == list(map(ord, "abcabca"))
    stats = engine.stats()
    assert stats.num_steps < 6
    assert stats.num_accepted_tokens == stats.num_draft_tokens == sum(stats.accepted_at) > 10
    assert stats.kv_blocks_free == CONFIG.num_kv_blocks


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demonstration model's files with a shape that loads at once."""
    model = tmp_path_factory.mktemp("models") / "tiny"
    shutil.copytree(DEMO_DIRECTORY, model, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    stored = json.loads((model / "config.json").read_text())
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    stored |= {**shape, "num_key_value_heads": 1, "head_dim": 16, "torch_dtype": "float32"}
    (model / "config.json").write_text(json.dumps(stored))
    return model


def real_texts(model: Path, **args: object) -> list[str]:
    pytest.importorskip("torch")
    from headrace.engine.tokenizer import Tokenizer

    declared = {"model": str(model), "load_format": "dummy", "num_threads": 1, "max_model_len": 512, **args}
    settings, _ = resolve(EngineArgs(**declared))  # type: ignore[arg-type]
    tokenizer = Tokenizer.from_config(settings)
    prompts = ["Hello", "The quick brown fox " * 20, "def main():", "The quick brown fox " * 19 + "jumps"]
    params = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)
    requests = [
        Request(str(i), tokenizer.encode(prompt), params, tokenizer.eos_token_ids) for i, prompt in enumerate(prompts)
    ]
    return [output.text for output in generate(Engine.from_config(settings), tokenizer, requests)]


@pytest.mark.parametrize(
    "args",
    [
        {"max_num_batched_tokens": 32, "max_num_seqs": 4},
        {"enable_chunked_prefill": False},
        {"enable_prefix_caching": False},
        {"scheduler_version": "v0"},
        {"scheduler_version": "v0", "enable_chunked_prefill": False},
        {"block_size": 8, "num_gpu_blocks_override": 70},
        {"max_num_seqs": 1},
    ],
    ids=str,
)
def test_settings_change_the_speed_and_never_the_answer(tiny: Path, args: dict[str, object]) -> None:
    assert real_texts(tiny, **args) == real_texts(tiny)


def test_the_seed_makes_the_weights(tiny: Path) -> None:
    assert real_texts(tiny, seed=1) != real_texts(tiny)


def pieces(**params: object) -> list[tuple[str, int]]:
    """Text and number of tokens of each output of one request."""
    told: list[tuple[str, int]] = []
    asked = [request(**params)]
    generate(
        Engine(CONFIG, ScriptedRunner()),
        LetterTokenizer(),  # type: ignore[arg-type]
        asked,
        on_output=lambda output: told.append((output.text, len(output.token_ids))),
    )
    return told


def test_a_stream_interval_gathers_tokens_behind_the_first() -> None:
    assert pieces(max_tokens=6) == [(letter, 1) for letter in "abcdef"]
    assert pieces(max_tokens=6, stream_interval=2) == [("a", 1), ("bc", 2), ("de", 2), ("f", 1)]
    assert pieces(max_tokens=6, stream_interval=99) == [("a", 1), ("bcdef", 5)]
    assert pieces(max_tokens=6, stream_interval=99, stop=("d",)) == [("a", 1), ("bc", 3)]


def test_an_answer_that_is_not_decoded_has_its_tokens() -> None:
    assert pieces(max_tokens=3, detokenize=False) == [("", 1)] * 3


def test_an_answer_that_repeats_itself_ends_and_says_so() -> None:
    rule = RepetitionDetection(max_pattern_size=3, min_count=2)
    runner = ScriptedRunner(lambda row: ord("xyzyz"[row.num_output_tokens % 5]))
    (output,) = generate(Engine(CONFIG, runner), LetterTokenizer(), [request(max_tokens=9, repetition_detection=rule)])  # type: ignore[arg-type]
    assert (output.text, output.finish_reason) == ("xyzyz", FinishReason.REPETITION)
    assert output.stop_reason == "repetition_detected"
