"""Samples: exact lengths where they are the point, vLLM's selection where a file decides."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from headrace.errors import ConfigError
from headrace.lab.workload.samples import build_workload
from headrace.lab.workload.spec import WorkloadSpec
from headrace.lab.workload.tokens import LocalTokenizer, PromptMaker, open_tokenizer


class Letters:
    """A tokenizer of one token a character, without markers."""

    name = "letters"
    local = True

    def encode(self, text: str, *, special: bool) -> list[int]:
        return [ord(c) for c in text]

    def decode(self, ids: object) -> str:
        return "".join(map(chr, ids))  # type: ignore[call-overload, arg-type]


def sharegpt(path: Path, *turns: tuple[str, ...]) -> str:
    entries = [{"id": str(i), "conversations": [{"from": "human", "value": v} for v in t]} for i, t in enumerate(turns)]
    path.write_text(json.dumps(entries))
    return str(path)


def test_scaled_conversation_lengths_are_exact() -> None:
    full = build_workload(WorkloadSpec(num_prompts=200), Letters())
    quarter = build_workload(WorkloadSpec(num_prompts=200, scale=0.25), Letters())
    for a, b in zip(full.samples, quarter.samples, strict=True):
        assert len(a.prompt) == a.prompt_tokens and len(b.prompt) == b.prompt_tokens
        assert b.prompt_tokens == max(4, round(a.prompt_tokens * 0.25))
        assert b.max_tokens == max(4, round(a.max_tokens * 0.25))
    assert full.unique_prompt_ratio == 1.0


def test_random_lengths_stay_in_their_range() -> None:
    spec = WorkloadSpec(
        dataset_name="random", num_prompts=300, random_input_len=100, random_output_len=10, random_range_ratio=0.2
    )
    samples = build_workload(spec, Letters()).samples
    assert {s.prompt_tokens for s in samples} == set(range(80, 121)) and {s.max_tokens for s in samples} == set(
        range(8, 13)
    )
    assert all(len(s.prompt) == s.prompt_tokens for s in samples)


def test_the_seed_decides_everything() -> None:
    def build(seed: int) -> str:
        return build_workload(WorkloadSpec(num_prompts=20, seed=seed), Letters()).digest()

    assert build(0) == build(0) != build(1)


def test_warm_up_prompts_share_nothing_with_measured_ones() -> None:
    workload = build_workload(WorkloadSpec(num_prompts=20, warmup_requests=20), Letters())
    measured = {s.prompt[:16] for s in workload.samples}
    assert len(workload.warmup) == 20 and not measured & {s.prompt[:16] for s in workload.warmup}


def test_chat_gets_text() -> None:
    (sample,) = build_workload(WorkloadSpec(num_prompts=1, endpoint="chat"), Letters()).samples
    assert isinstance(sample.prompt, str) and len(sample.prompt) == sample.prompt_tokens


def test_vllms_filter_takes_the_first_two_turns_within_the_limits(tmp_path: Path) -> None:
    path = sharegpt(
        tmp_path / "data.json",
        ("question", "answer", "a third turn"),
        ("abc", "prompt too short"),
        ("answer too short", "abc"),
        ("p" * 1025, "prompt too long"),
        ("p" * 1024, "o" * 1025),
        ("only one turn",),
    )
    spec = WorkloadSpec(dataset_name="sharegpt", dataset_path=path, num_prompts=1)
    (sample,) = build_workload(spec, Letters()).samples
    assert (sample.prompt, sample.prompt_tokens, sample.max_tokens) == ("question", 8, 6)


def test_a_forced_answer_length_replaces_the_files_and_skips_its_check(tmp_path: Path) -> None:
    path = sharegpt(tmp_path / "data.json", ("question", "abc"))
    spec = WorkloadSpec(dataset_name="sharegpt", dataset_path=path, num_prompts=1, sharegpt_output_len=3)
    assert build_workload(spec, Letters()).samples[0].max_tokens == 3


def test_too_few_conversations_are_drawn_again_and_the_ratio_says_so(tmp_path: Path) -> None:
    path = sharegpt(tmp_path / "data.json", ("question one", "answer"), ("question two", "answer"))
    workload = build_workload(WorkloadSpec(dataset_name="sharegpt", dataset_path=path, num_prompts=8), Letters())
    assert [s.index for s in workload.samples] == list(range(8))
    assert workload.unique_prompt_ratio == 0.25


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not JSON"),
        ('{"a": 1}', "ShareGPT layout"),
        ("[]", "no usable conversation"),
        ('[{"conversations": [{"value": "only one turn"}]}, 3, {"conversations": "x"}]', "no usable conversation"),
    ],
)
def test_a_file_that_cannot_serve_is_refused_in_a_sentence(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "data.json"
    path.write_text(content)
    spec = WorkloadSpec(dataset_name="sharegpt", dataset_path=str(path), num_prompts=1)
    with pytest.raises(ConfigError, match=words):
        build_workload(spec, Letters())


def test_a_missing_file_is_named() -> None:
    spec = WorkloadSpec(dataset_name="sharegpt", dataset_path="nowhere.json", num_prompts=1)
    with pytest.raises(ConfigError, match=r"nowhere\.json"):
        build_workload(spec, Letters())


def test_a_tokenizer_file_is_found_in_the_models_directory(tmp_path: Path) -> None:
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "water": 1, "river": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    tokenizer = open_tokenizer(None, base_url="http://127.0.0.1:1", model=str(tmp_path))
    assert isinstance(tokenizer, LocalTokenizer) and tokenizer.encode("water river sea", special=True) == [1, 2, 0]


def test_a_tokenizer_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"neither a tokenizer\.json nor a directory"):
        open_tokenizer(str(tmp_path / "none"), base_url="http://127.0.0.1:1", model="m")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="can be read"):
        open_tokenizer(str(tmp_path), base_url="http://127.0.0.1:1", model="m")


@pytest.mark.parametrize("name", ["TinyLlama_v1.1", "gpt-neox-20b"])
def test_real_tokenizers_give_texts_of_the_wanted_length(shared_data: Path, name: str) -> None:
    import random

    tokenizer = open_tokenizer(str(shared_data / "tokenizers" / name), base_url="http://127.0.0.1:1", model="m")
    maker = PromptMaker(tokenizer)
    counts = [(n, maker.text(random.Random(n), n)) for n in (4, 5, 17, 100, 333)]
    assert all(len(tokenizer.encode(text, special=False)) == count for _, (text, count) in counts)
    assert [count for _, (_, count) in counts] == [n for n, _ in counts]


def test_real_conversations_pass_the_filter(shared_data: Path) -> None:
    spec = WorkloadSpec(
        dataset_name="sharegpt",
        dataset_path=str(shared_data / "conversations" / "sharegpt_arena_hard_1250.json"),
        num_prompts=50,
        tokenizer=str(shared_data / "tokenizers" / "TinyLlama_v1.1"),
    )
    tokenizer = open_tokenizer(spec.tokenizer, base_url="http://127.0.0.1:1", model="m")
    workload = build_workload(spec, tokenizer)
    assert len(workload.samples) == 50 and workload.unique_prompt_ratio > 0.9
    assert all(4 <= s.prompt_tokens <= 1024 and s.prompt_tokens + s.max_tokens <= 2048 for s in workload.samples)
