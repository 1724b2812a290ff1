"""vLLM's further sampling parameters in `LLM`: what each changes, on a small random model."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace import LLM, RequestOutputKind, SamplingParams
from headrace.engine.demo import DEMO_DIRECTORY
from headrace.engine.flat_logprobs import FlatLogprobs, Logprob
from headrace.errors import InvalidRequest

pytest.importorskip("torch")

PROMPT = "The wheel turns the stone."


def thinker(directory: Path) -> dict[str, int]:
    """Give a copy of the model the tokens of thinking; their ids."""
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    style = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    size = len(tokenizer["model"]["vocab"])
    marks = {"<think>": size, "</think>": size + 1}
    tokenizer["added_tokens"] += [{"id": token, "content": text, **style} for text, token in marks.items()]
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "vocab_size": size + 2}))
    return marks


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    directory = tmp_path_factory.mktemp("model") / "tiny"
    shutil.copytree(DEMO_DIRECTORY, directory, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    config = json.loads((directory / "config.json").read_text())
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    (directory / "config.json").write_text(json.dumps({**config, **shape, "num_key_value_heads": 1, "head_dim": 16}))
    thinker(directory)
    with LLM(
        model=str(directory),
        load_format="dummy",
        dtype="float32",
        max_model_len=128,
        max_num_seqs=8,
        num_threads=1,
        num_gpu_blocks_override=64,
    ) as engine:
        yield engine


def one(llm: LLM, prompt: Any = PROMPT, **params: Any) -> Any:
    values = {"temperature": 0, "max_tokens": 6, "ignore_eos": True, **params}
    return llm.generate(prompt, SamplingParams(**values), use_tqdm=False)[0]


def test_the_best_of_several_are_the_likeliest(llm: LLM) -> None:
    sampled = {"temperature": 1.0, "seed": 3, "logprobs": 0}
    every = one(llm, n=5, **sampled).outputs
    best = one(llm, n=2, best_of=5, **sampled).outputs
    likeliest = sorted(every, key=lambda answer: -answer.cumulative_logprob)[:2]
    assert [answer.token_ids for answer in best] == [answer.token_ids for answer in likeliest]
    assert [answer.index for answer in best] == [0, 1]
    assert one(llm, best_of=2).outputs[0].logprobs is None, "they are looked at, but not asked for"


def test_named_ids_have_the_log_probabilities_that_all_alternatives_show(llm: LLM) -> None:
    ids = [5, 300, 7]
    known = one(llm, logprobs=llm.get_tokenizer().vocab_size).outputs[0]
    named = one(llm, logprob_token_ids=ids).outputs[0]
    assert named.token_ids == known.token_ids
    for token, told, every in zip(named.token_ids, named.logprobs, known.logprobs, strict=True):
        assert set(told) == {token, *ids} and told[token].rank == 1
        for each in ids:
            assert told[each].logprob == pytest.approx(every[each].logprob, abs=1e-5)


def test_prompt_scores_are_those_of_the_prompt_log_probabilities(llm: LLM) -> None:
    prompt = llm.get_tokenizer().encode(PROMPT)
    start, every = 2, llm.get_tokenizer().vocab_size
    rows = [[token, 11, -1] for token in prompt[start + 1 :]]
    rows[0] = [rows[0][0]]  # shorter rows are filled up with -1
    known = one(llm, prompt, prompt_logprobs=every, max_tokens=1).prompt_logprobs
    scored = one(llm, prompt, prompt_logprob_token_ids=rows, prompt_logprob_start=start, max_tokens=1)
    assert scored.prompt_logprobs is None
    assert len(scored.prompt_token_id_logprobs) == len(prompt) - 1 - start
    for place, row in enumerate(scored.prompt_token_id_logprobs):
        table, told = known[start + 1 + place], rows[place]
        assert row[0] == pytest.approx(table[told[0]].logprob, abs=1e-5)
        assert row[1] == (-math.inf if place == 0 else pytest.approx(table[11].logprob, abs=1e-5))
        assert row[2] == -math.inf
    with pytest.raises(InvalidRequest, match="one row for each scored token"):
        one(llm, prompt, prompt_logprob_token_ids=rows)


def test_flat_log_probabilities_read_like_the_tables(llm: LLM) -> None:
    plain = one(llm, logprobs=2, prompt_logprobs=1)
    flat = one(llm, logprobs=2, prompt_logprobs=1, flat_logprobs=True)
    told = flat.outputs[0].logprobs
    assert isinstance(told, FlatLogprobs) and list(told) == plain.outputs[0].logprobs
    assert len(told.token_ids) == sum(map(len, told)) and told[-1] == told[len(told) - 1]
    assert flat.prompt_logprobs[0] == {} and list(flat.prompt_logprobs)[1:] == plain.prompt_logprobs[1:]
    assert isinstance(told[0][flat.outputs[0].token_ids[0]], Logprob) and list(told[1:3]) == list(told)[1:3]


def test_a_prompt_is_cut_from_the_left_unless_said_otherwise(llm: LLM) -> None:
    ids = llm.get_tokenizer().encode(PROMPT)
    assert one(llm, truncate_prompt_tokens=3).prompt_token_ids == ids[-3:]
    assert one(llm, truncate_prompt_tokens=3, truncation_side="right").prompt_token_ids == ids[:3]
    assert one(llm, truncate_prompt_tokens=99).prompt_token_ids == ids
    assert len(one(llm, ids * 30, truncate_prompt_tokens=-1).prompt_token_ids) == 128 - 6


def test_answers_without_text_and_kinds_that_change_nothing(llm: LLM) -> None:
    plain, silent = one(llm), one(llm, detokenize=False)
    assert silent.outputs[0].token_ids == plain.outputs[0].token_ids and silent.outputs[0].text == ""
    for kind in RequestOutputKind:
        assert one(llm, output_kind=kind, stream_interval=3).outputs == plain.outputs


def test_repetition_ends_an_answer(llm: LLM) -> None:
    allowed = {"allowed_token_ids": [5]}
    (answer,) = one(llm, **allowed, repetition_detection={"max_pattern_size": 2, "min_count": 3}).outputs
    assert (answer.token_ids, answer.finish_reason, answer.stop_reason) == (
        [5] * 3,
        "repetition",
        "repetition_detected",
    )


@pytest.mark.parametrize("budget", [0, 1, 4])
def test_thinking_ends_when_its_budget_is_spent(llm: LLM, budget: int) -> None:
    token_id = llm.get_tokenizer().token_id
    (answer,) = one(llm, "Why? <think>", max_tokens=9, thinking_token_budget=budget).outputs
    assert answer.token_ids.index(token_id("</think>")) == budget
    free = one(llm, "Why? <think>", max_tokens=9, thinking_token_budget=-1).outputs[0].token_ids
    assert token_id("</think>") not in free and answer.token_ids[:budget] == free[:budget]
    begun = {"allowed_token_ids": [token_id("<think>"), 5], "logit_bias": {token_id("<think>"): 50}}
    ids = one(llm, max_tokens=9, thinking_token_budget=budget, **begun).outputs[0].token_ids
    assert ids[0] == token_id("<think>")


def test_what_follows_a_trigger_has_its_form(llm: LLM) -> None:
    """The bias makes the random model begin a tag; from there on the form leaves it no choice but the number."""
    (at,) = llm.get_tokenizer().encode("@", add_special_tokens=False)
    schema = {"type": "integer", "minimum": 10, "maximum": 99}
    older = {"structures": [{"begin": "@age(", "schema": schema, "end": ")"}], "triggers": ["@"]}
    tag = {"begin": "@age(", "content": {"type": "json_schema", "json_schema": schema}, "end": ")"}
    newer = {"type": "structural_tag", "format": {"type": "triggered_tags", "triggers": ["@"], "tags": [tag]}}
    for form in (older, newer, json.dumps(older)):
        said = one(
            llm, ignore_eos=False, max_tokens=40, logit_bias={at: 50}, structured_outputs={"structural_tag": form}
        )
        assert re.match(r"@age\([1-9][0-9]\)", said.outputs[0].text), said.outputs[0].text
    free = one(llm, ignore_eos=False, structured_outputs={"structural_tag": older}, logit_bias={at: -100})
    assert "@" not in free.outputs[0].text, "text without a trigger is free"


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"detokenize": False, "stop": "x"}, "detokenize"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"truncation_side": "middle"}, "truncation_side"),
        ({"logprobs": 3, "logprob_token_ids": [1]}, "logprobs"),
        ({"logprob_token_ids": [1] * 129}, "logprob_token_ids"),
        ({"prompt_logprob_start": 1}, "prompt_logprob_token_ids"),
        ({"prompt_logprobs": 1, "prompt_logprob_token_ids": [[1]]}, "exclude"),
        ({"repetition_detection": {"max_pattern_size": 2}}, "min_count"),
        ({"repetition_detection": {"max_pattern_size": 2, "min_pattern_size": 3, "min_count": 2}}, "min_pattern_size"),
        ({"repetition_detection": {"size": 2}}, "size"),
        ({"output_kind": 1}, "output_kind"),
        ({"stream_interval": 0}, "stream_interval"),
        ({"thinking_token_budget": -2}, "thinking_token_budget"),
    ],
)
def test_what_cannot_be_is_refused_by_name(params: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        SamplingParams(**params)
