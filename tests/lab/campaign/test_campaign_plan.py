"""A wrong plan is one sentence that names the file, the key and what would be accepted."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.errors import ConfigError
from headrace.lab.campaign.plan import parse_plan, read_plan

HEAD = 'name = "p"\ntitle = "t"\n'


def sentence(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_plan(text, source="p.toml", directory=Path("."))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('title = "t"', "p.toml: name is missing"),
        ('name = "a/b"\ntitle = "t"', "p.toml: name must be letters, digits, dots, dashes and underscores"),
        ("name = 1", "p.toml: name must be a text, not 1"),
        (HEAD + "[tragets]", "p.toml: the plan has no key 'tragets'; did you mean 'targets'? (keys: name, run, serve"),
        (HEAD + "[run]\nrepeat = 3", "p.toml: [run] has no key 'repeat'; did you mean 'repeats'?"),
        (HEAD + "[run]\nrepeats = 0", "p.toml: [run] repeats must be at least 1, not 0"),
        (HEAD + '[run]\nrepeats = "3"', "p.toml: [run] repeats must be a whole number, not '3'"),
        (HEAD + '[run]\norder = "random"', "p.toml: [run] order must be one of 'shuffled', 'listed', not 'random'"),
        (HEAD + '[target]\nlauncher = "vllm"', "p.toml: [target] has no key 'launcher'"),
        (HEAD + "[target]\nready-timeout-s = 0", "p.toml: [target] ready-timeout-s must be above 0"),
        (
            HEAD + "[serve]\nmax_model_len = 5",
            "p.toml: [serve] has no key 'max_model_len'; did you mean 'max-model-len'?",
        ),
        (
            HEAD + "[serve]\nmax-num-seqs = 0",
            "p.toml: [serve] max-num-seqs must be a whole number of at least 1, not 0",
        ),
        (HEAD + "[serve]\nmax-num-seqs = [1]", "not [1]; only [[sweep]] takes lists"),
        (HEAD + '[serve]\nscheduler-version = "v3"', '[serve] scheduler-version must be one of "v0", "v1", not \'v3\''),
        (HEAD + "[[sweep]]\nmax-num-seqs = []", "p.toml: [[sweep]] number 1 max-num-seqs is an empty list"),
        (HEAD + "[[sweep]]\nmax-num-seqs = [2, 2]", "max-num-seqs has the same value twice"),
        (
            HEAD + '[[sweep]]\nmax-num-seqs = 2\n[[sweep]]\nenable-chunked-prefill = "on"',
            "p.toml: [[sweep]] number 2 enable-chunked-prefill must be true or false, not 'on'",
        ),
        (HEAD + "[sweep]\nmax-num-seqs = [2]", "p.toml: [[sweep]] must be one or more [[sweep]] tables"),
        (
            HEAD + "[workload]\nnum-promts = 3",
            "p.toml: [workload] has no key 'num-promts'; did you mean 'num-prompts'?",
        ),
        (HEAD + "[workload]\nnum-prompts = 0", "p.toml: [workload]: num_prompts must be a whole number of at least 1"),
        (HEAD + "[workload]\nwarmup-requests = 3", "the warm-up is [run] warmup"),
        (HEAD + "x =", "p.toml is not TOML: Invalid value"),
    ],
)
def test_a_mistake_is_named_with_what_would_be_accepted(text: str, said: str) -> None:
    assert said in sentence(text)


def test_a_plan_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no such plan; examples/demo-plan\.toml is one to start from"):
        read_plan(tmp_path / "none.toml")


def test_paths_are_relative_to_the_plan(tmp_path: Path) -> None:
    (tmp_path / "talk.json").write_text("[]")
    (tmp_path / "plan.toml").write_text(HEAD + '[workload]\ndataset = "sharegpt"\ndataset-path = "talk.json"')
    assert read_plan(tmp_path / "plan.toml").workload_spec().dataset_path == str(tmp_path / "talk.json")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[workload]\ndataset = "sharegpt"\ndataset-path = "talk.json"', "[workload] dataset-path: there is no file"),
        ('[workload]\ntokenizer = "words"', "[workload] tokenizer: "),
        ('[target]\nmodel = "./mine"', "[target] model: there is no directory"),
        ('[target]\nmodel = "/a/b/mine"', "[target] model: there is no directory /a/b/mine (a name of the Hugging"),
        ('[target]\nmodel = "models/mine"', "[target] model: there is no directory"),
        ('[target]\nmodel = "models"', "models has no config.json, so it is no model"),
        ('[[sweep]]\ntokenizer = ["Qwen/Qwen3-0.6B", "../words"]', "[[sweep]] tokenizer: there is no directory"),
    ],
)
def test_a_path_that_is_not_there_is_told_when_the_plan_is_read(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "models").mkdir()
    with pytest.raises(ConfigError) as caught:
        parse_plan(HEAD + text, source="p.toml", directory=tmp_path)
    assert str(caught.value).startswith("p.toml: ") and said in str(caught.value)


@pytest.mark.parametrize("name", ["Qwen/Qwen3-0.6B", "gpt2"])
def test_a_model_may_be_a_name_of_the_hub(tmp_path: Path, name: str) -> None:
    plan = parse_plan(HEAD + f'[target]\nmodel = "{name}"', source="p.toml", directory=tmp_path)
    assert plan.target.model == name
