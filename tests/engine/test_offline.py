"""`from headrace import LLM, SamplingParams`: a program written for vLLM's offline use, on a small random model."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace import LLM, SamplingParams
from headrace.engine.demo import DEMO_DIRECTORY
from headrace.errors import ConfigError, InvalidRequest

pytest.importorskip("torch")

GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
PROMPTS = ["The wheel turns the stone.", "Water", "A quick brown fox"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model") / "tiny"
    shutil.copytree(DEMO_DIRECTORY, directory, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    config = json.loads((directory / "config.json").read_text())
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    (directory / "config.json").write_text(json.dumps({**config, **shape, "num_key_value_heads": 1, "head_dim": 16}))
    return directory


@pytest.fixture(scope="module")
def llm(model: Path) -> Iterator[LLM]:
    arguments: dict[str, Any] = {"tensor_parallel_size": 1, "trust_remote_code": True, "enforce_eager": True}
    with LLM(
        model=str(model),
        load_format="dummy",
        dtype="float32",
        max_model_len=128,
        max_num_seqs=8,
        num_threads=1,
        num_gpu_blocks_override=64,
        **arguments,
    ) as engine:
        yield engine


def test_answers_come_in_the_order_of_the_prompts(llm: LLM) -> None:
    together = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    assert [output.prompt for output in together] == PROMPTS
    for prompt, output in zip(PROMPTS, together, strict=True):
        (alone,) = llm.generate(prompt, GREEDY, use_tqdm=False)
        assert alone.outputs[0].text == output.outputs[0].text
        assert alone.outputs[0].token_ids == output.outputs[0].token_ids and len(output.outputs[0].token_ids) == 6
        assert output.outputs[0].finish_reason == "length" and output.finished
    assert len({output.request_id for output in together}) == len(PROMPTS)


def test_a_prompt_may_be_ids(llm: LLM) -> None:
    ids = llm.get_tokenizer().encode(PROMPTS[0])
    text, tokens, plain, wrapped = (
        llm.generate(prompt, GREEDY, use_tqdm=False)[0]
        for prompt in (PROMPTS[0], {"prompt_token_ids": ids}, ids, {"prompt": PROMPTS[0]})
    )
    assert text.outputs == tokens.outputs == plain.outputs == wrapped.outputs
    assert tokens.prompt is None and tokens.prompt_token_ids == text.prompt_token_ids == ids
    assert len(llm.generate([{"prompt_token_ids": ids}, ids, "x"], GREEDY, use_tqdm=False)) == 3


def test_each_prompt_may_have_its_own_parameters(llm: LLM) -> None:
    lengths = [1, 4, 2]
    params = [SamplingParams(temperature=0, max_tokens=length, ignore_eos=True) for length in lengths]
    assert [len(o.outputs[0].token_ids) for o in llm.generate(PROMPTS, params, use_tqdm=False)] == lengths
    with pytest.raises(InvalidRequest, match="There are 3 prompts and 2 sampling parameters"):
        llm.generate(PROMPTS, params[:2], use_tqdm=False)


def test_n_sequences_of_a_seeded_request_differ_and_come_again(llm: LLM) -> None:
    params = SamplingParams(n=3, seed=7, max_tokens=8, ignore_eos=True)
    (first,), (again,) = (llm.generate("Water", params, use_tqdm=False) for _ in range(2))
    assert [each.index for each in first.outputs] == [0, 1, 2]
    assert first.outputs == again.outputs
    assert len({tuple(each.token_ids) for each in first.outputs}) == 3
    (second,) = llm.generate("Water", SamplingParams(seed=8, max_tokens=8, ignore_eos=True), use_tqdm=False)
    assert second.outputs[0].token_ids == first.outputs[1].token_ids  # seed + 1, as in vLLM


def test_log_probabilities_have_the_chosen_token_and_add_up(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=3, logprobs=2, prompt_logprobs=1, ignore_eos=True)
    (output,) = llm.generate(PROMPTS[0], params, use_tqdm=False)
    (answer,) = output.outputs
    assert answer.logprobs is not None and len(answer.logprobs) == 3
    for token, table in zip(answer.token_ids, answer.logprobs, strict=True):
        assert table[token].rank == 1 and len(table) == 2  # greedy: the chosen one is among the best
        assert table[token].decoded_token == llm.get_tokenizer().token_text(token)
    chosen = [table[token].logprob for token, table in zip(answer.token_ids, answer.logprobs, strict=True)]
    assert answer.cumulative_logprob == sum(chosen)
    assert output.prompt_logprobs is not None and output.prompt_logprobs[0] is None
    assert len(output.prompt_logprobs) == len(output.prompt_token_ids)
    assert llm.generate("x", GREEDY, use_tqdm=False)[0].outputs[0].logprobs is None


def test_a_stop_string_ends_an_answer(llm: LLM) -> None:
    (whole,) = llm.generate(PROMPTS[0], GREEDY, use_tqdm=False)
    text = whole.outputs[0].text
    stop = text[len(text) // 2 :]
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, stop=stop)
    (output,) = llm.generate(PROMPTS[0], params, use_tqdm=False)
    assert output.outputs[0].text == text[: text.index(stop)]
    assert (output.outputs[0].finish_reason, output.outputs[0].stop_reason) == ("stop", stop)


@pytest.mark.parametrize(
    ("structure", "pattern"),
    [({"regex": "[0-9]{3}"}, "[0-9]{3}"), ({"choice": ["yes", "no"]}, "yes|no"), ({"json": {"const": 7}}, "7")],
)
def test_an_answer_follows_its_structure(llm: LLM, structure: dict[str, Any], pattern: str) -> None:
    params = SamplingParams(n=2, max_tokens=20, structured_outputs=structure)
    (output,) = llm.generate("Water", params, use_tqdm=False)
    assert all(re.fullmatch(pattern, answer.text) for answer in output.outputs)
    with pytest.raises(InvalidRequest, match="`structured_outputs` cannot be followed"):
        llm.generate("Water", SamplingParams(structured_outputs={"regex": "("}), use_tqdm=False)


def test_without_a_limit_an_answer_fills_the_context(llm: LLM) -> None:
    (output,) = llm.generate("Water", SamplingParams(temperature=0, max_tokens=None, ignore_eos=True), use_tqdm=False)
    assert len(output.prompt_token_ids) + len(output.outputs[0].token_ids) == 128


def test_chat_renders_the_template(llm: LLM) -> None:
    conversation = [{"role": "user", "content": [{"type": "text", "text": "Why "}, {"type": "text", "text": "blue?"}]}]
    (output,) = llm.chat(conversation, GREEDY, use_tqdm=False)
    assert output.prompt == llm.get_tokenizer().render_chat([{"role": "user", "content": "Why blue?"}])
    several = llm.chat([conversation, conversation], GREEDY, use_tqdm=False)
    assert [each.outputs for each in several] == [output.outputs] * 2
    with pytest.raises(InvalidRequest, match="parts of type text only"):
        llm.chat([{"role": "user", "content": [{"type": "image_url"}]}], GREEDY, use_tqdm=False)


def test_the_prefix_cache_is_used_and_can_be_reset(llm: LLM) -> None:
    llm.reset_prefix_cache()
    prompt = PROMPTS[0] * 4
    found = [llm.generate(prompt, GREEDY, use_tqdm=False)[0].num_cached_tokens for _ in range(2)]
    llm.reset_prefix_cache()
    found.append(llm.generate(prompt, GREEDY, use_tqdm=False)[0].num_cached_tokens)
    assert found[0] == found[2] == 0 and found[1] > 0


def test_the_bar_counts_sequences_on_stderr(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    llm.generate(PROMPTS, SamplingParams(n=2, max_tokens=2))
    out, err = capsys.readouterr()
    assert out == "" and "Processed prompts" in err and "6/6" in err and "tokens/s" in err
    llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    assert capsys.readouterr() == ("", "")


def test_one_prompt_that_cannot_be_served_is_said_before_any_runs(llm: LLM) -> None:
    before = llm._engine.stats().generation_tokens
    for prompt, words in (([1] * 128, "maximum context length is 128"), ([4096], "ids from 0 to 4095"), ([], "is a")):
        with pytest.raises(InvalidRequest, match=words):
            llm.generate([PROMPTS[0], {"prompt_token_ids": prompt}], GREEDY, use_tqdm=False)
    assert llm._engine.stats().generation_tokens == before and not llm._engine.has_work


def test_an_interrupt_leaves_nothing_running(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(llm._engine, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    assert not llm._engine.has_work
    assert llm._engine.scheduler.blocks.num_free == llm.config.num_kv_blocks


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"n": 0}, "`n` must be a whole number from 1"),
        ({"temperature": -1}, "`temperature` must be at least 0"),
        ({"temperature": float("nan")}, "`temperature` must be at least 0"),
        ({"top_p": 0}, "`top_p` must be above 0 and at most 1"),
        ({"top_k": -2}, "`top_k` must be a whole number from -1"),
        ({"max_tokens": 0}, "`max_tokens` must be a whole number from 1"),
        ({"max_tokens": 2, "min_tokens": 3}, "`min_tokens` must be a whole number from 0 to 2"),
        ({"seed": 1.5}, "`seed` must be a whole number"),
        ({"stop": ""}, "`stop` must hold texts that are not empty"),
        ({"bad_words": "no"}, "`bad_words` must hold texts"),
        ({"structured_outputs": {}}, "needs exactly one of json, regex"),
        ({"structured_outputs": {"regex": "a", "json": {}}}, "needs exactly one of json, regex"),
    ],
)
def test_parameters_are_checked(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        SamplingParams(**wrong)


def test_vllms_spellings_reach_the_core(llm: LLM) -> None:
    params = SamplingParams(stop="end", top_k=-1, seed=-1, logit_bias={5: 1.0, 3: -1.0}, bad_words=["no"])
    core = params.translated(llm.get_tokenizer(), (), 50)
    assert (core.stop, core.top_k, core.seed, core.max_tokens) == (("end",), 0, None, 16)
    assert core.logit_bias == ((3, -1.0), (5, 1.0)) and core.bad_words_token_ids
    with pytest.raises(InvalidRequest, match="`logit_bias` has a token id outside 0 to 4095"):
        SamplingParams(logit_bias={4096: 1.0}).translated(llm.get_tokenizer(), (), 50)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"tensor_parallel_size": 4}, "tensor_parallel_size=4 is not supported; use 1, or leave it out"),
        ({"max_modellen": 4}, "no argument 'max_modellen'; did you mean 'max_model_len'"),
        ({"max_num_seqs": 0}, "R7: --max-num-seqs is 0"),
    ],
)
def test_arguments_that_cannot_be_are_refused(model: Path, wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        LLM(str(model), load_format="dummy", **wrong)


def test_importing_headrace_loads_no_torch() -> None:
    code = "import sys, headrace; headrace.SamplingParams(temperature=0); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
