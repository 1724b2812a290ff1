"""Recorded arrivals: five forms, one list; replayed to the nanosecond on the scale that is asked for."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from headrace.errors import ConfigError
from headrace.lab.workload.arrivals import arrival_schedule, audit_arrivals
from headrace.lab.workload.samples import build_workload, spec_lengths
from headrace.lab.workload.spec import WorkloadSpec
from headrace.lab.workload.traces import read_trace

SECOND = 1_000_000_000


class LetterTokenizer:
    """A token a character."""

    name, local = "letters", True

    def encode(self, text: str, *, special: bool) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))


LETTERS = LetterTokenizer()
FORMS = {
    "azure.csv": "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n"
    "2023-11-16 18:15:48.1805901,396,109\n",
    "burstgpt.csv": "Timestamp,Model,Request tokens,Response tokens\n5,ChatGPT,374,44\n6.5000001,GPT-4,396,109\n",
    "mooncake.jsonl": '{"timestamp": 100, "input_length": 374, "output_length": 44, "hash_ids": [0]}\n'
    '{"timestamp": 1600.0001, "input_length": 396, "output_length": 109, "hash_ids": [0, 7]}\n',
    "aibrix.jsonl": '{"timestamp": 0, "requests": [{"Prompt Length": 374, "Output Length": 44, "prompt": "a"}]}\n'
    '{"timestamp": 1500.0001, "requests": [{"Prompt Length": 396, "Output Length": 109, "prompt": "b"}]}\n',
    "replay.json": '{"4": {"in_len": 396, "out_len": 109, "record_time": 11.5000001, "total_chunk_time": 1.0},'
    ' "0": {"in_len": 374, "out_len": 44, "record_time": 9.5, "total_chunk_time": 0.5}}',
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_the_same_two_arrivals(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(FORMS[name])
    first, second = read_trace(tmp_path / name)
    assert (first.due_ns, second.due_ns) == (0, 1_500_000_100)
    assert [(one.input_tokens, one.output_tokens) for one in (first, second)] == [(374, 44), (396, 109)]


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "{}", '[{"x": 1}]', "[1]", '{"timestamp": 1, "input_length": -3}'])
def test_another_file_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "x").write_text(text)
    with pytest.raises(ConfigError, match="the trace"):
        read_trace(tmp_path / "x")


def test_a_trace_brings_lengths_arrivals_and_shared_blocks(tmp_path: Path) -> None:
    rows = [(0, [1, 2], 1024), (2000, [1, 3], 1000)]
    lines = [json.dumps({"timestamp": t, "input_length": n, "output_length": 8, "hash_ids": ids}) for t, ids, n in rows]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    spec = WorkloadSpec(
        dataset_name="trace", dataset_path=str(tmp_path / "t.jsonl"), num_prompts=2, time_scale=0.5, scale=0.25
    )
    workload = build_workload(spec, LETTERS)
    a, b = (sample.prompt for sample in workload.samples)
    assert workload.arrivals_ns == (0, SECOND) and not spec.closed_loop
    assert (len(a), len(b)) == (256, 250) and a[:128] == b[:128] and a[128:200] != b[128:200]
    assert spec_lengths(spec) == [(256, 4), (250, 4)]


def test_recorded_arrivals_fit_any_dataset(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(FORMS["azure.csv"])
    spec = WorkloadSpec(num_prompts=2, scale=0.1, arrivals_path=str(tmp_path / "a.csv"), time_scale=2.0)
    assert build_workload(spec, LETTERS).arrivals_ns == (0, 3_000_000_200)
    with pytest.raises(ConfigError, match="fewer than num_prompts"):
        build_workload(WorkloadSpec(num_prompts=3, scale=0.1, arrivals_path=str(tmp_path / "a.csv")), LETTERS)


def test_real_traces_are_read_whole(shared_data: Path) -> None:
    counts = {
        "azure2023_conv.csv": 19_366,
        "azure2023_code.csv": 8_819,
        "mooncake_conversation.jsonl": 12_031,
        "mooncake_synthetic.jsonl": 3_993,
        "aibrix_sharegpt_8min.jsonl": 2_026,
        "burstgpt_replay/detail_scale100_500.json": 500,
    }
    for name, count in counts.items():
        arrivals = read_trace(shared_data / "arrivals" / name)
        assert len(arrivals) == count and arrivals[0].due_ns == 0
    conversation = read_trace(shared_data / "arrivals" / "azure2023_conv.csv")
    assert round(sum(one.input_tokens for one in conversation) / len(conversation)) == 1155


def test_steps_change_the_rate_at_their_time() -> None:
    spec = WorkloadSpec(num_prompts=60, rate_steps="2:10,8:2.5", burstiness=float("inf"))
    due = arrival_schedule(spec)
    assert due[19] == 10 * SECOND and due[39] == 12.5 * SECOND and due[59] == 15 * SECOND  # the last rate goes on
    poisson = arrival_schedule(WorkloadSpec(num_prompts=4000, rate_steps="20:100,40:1"))
    audit = audit_arrivals([t for t in poisson if t < 100 * SECOND])
    assert audit.rate_rps == pytest.approx(20, rel=0.06) and audit.gap_cv == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"rate_steps": "2"}, "RATE:SECONDS"),
        ({"rate_steps": "2:1", "request_rate": 3.0}, "both say when"),
        ({"time_scale": 2.0}, "recorded arrivals"),
        ({"dataset_name": "trace"}, "dataset_path is needed"),
        ({"dataset_name": "sessions"}, "endpoint chat"),
        ({"dataset_name": "custom", "dataset_path": "x", "scale": 2.0}, "scale applies"),
    ],
)
def test_what_does_not_fit_together_is_named(keys: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        WorkloadSpec(**keys)  # type: ignore[arg-type]


# Datasets beside ShareGPT


def test_sonnet_shares_its_beginning(tmp_path: Path) -> None:
    (tmp_path / "poem.txt").write_text("".join(f"line {i:04d} of the poem\n" for i in range(50)))
    spec = WorkloadSpec(
        dataset_name="sonnet",
        dataset_path=str(tmp_path / "poem.txt"),
        num_prompts=4,
        sonnet_input_len=300,
        sonnet_prefix_len=120,
    )
    texts = [str(sample.prompt) for sample in build_workload(spec, LETTERS).samples]
    assert len({text[:110] for text in texts}) == 1 and len(set(texts)) == 4
    assert all(250 < len(text) < 350 for text in texts)


def test_prefixes_are_shared_by_equal_parts() -> None:
    spec = WorkloadSpec(
        dataset_name="shared-prefix", num_prompts=9, num_prefixes=3, prefix_len=8, suffix_len=4, prefix_output_len=2
    )
    prompts = [sample.prompt for sample in build_workload(spec, LETTERS).samples]
    assert len({prompt[:8] for prompt in prompts}) == 3 and len(set(prompts)) == 9
    assert all(len(prompt) == 12 for prompt in prompts)


def test_lines_of_ones_own(tmp_path: Path) -> None:
    rows = [{"prompt": "abc", "output_tokens": 5}, {"question": "abcd", "answer": "xy"}, {"prompt": "abcde"}]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    spec = WorkloadSpec(dataset_name="custom", dataset_path=str(tmp_path / "own.jsonl"), num_prompts=6)
    found = {(str(s.prompt), s.max_tokens) for s in build_workload(spec, LETTERS).samples}
    assert found == {("abc", 5), ("abcd", 2), ("abcde", 256)}
    (tmp_path / "own.jsonl").write_text('{"prompt": "a"}\n{"n": 1}\n')
    with pytest.raises(ConfigError, match="line 2"):
        build_workload(spec, LETTERS)


def test_the_hub_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    from types import SimpleNamespace

    spec = WorkloadSpec(dataset_name="hf", dataset_path="some/set", num_prompts=2, custom_output_len=3)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match="needs the package datasets"):
        build_workload(spec, LETTERS)

    def unreachable(*_: object, **__: object) -> object:
        raise ConnectionError("no route to the hub")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=unreachable))
    with pytest.raises(ConfigError, match=r"no route to the hub.*needs a network"):
        build_workload(spec, LETTERS)

    class Rows(list[dict[str, object]]):
        def shuffle(self, seed: int) -> Rows:
            return Rows(random.Random(seed).sample(self, len(self)))

    rows = Rows([{"conversations": [{"from": "human", "value": "hi"}]}, {"instruction": "do"}, {"id": 3}])
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=lambda *_, **__: rows))
    found = {(str(sample.prompt), sample.max_tokens) for sample in build_workload(spec, LETTERS).samples}
    assert found == {("hi", 3), ("do", 3)}
