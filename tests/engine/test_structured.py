"""Structured output: whatever the model says, the answer follows its grammar, and ends only where the grammar ends."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable

import pytest

from headrace.core.request import FinishReason, Request, SamplingParams
from headrace.engine.config import EngineArgs, EngineConfig, resolve
from headrace.engine.demo import DEMO_DIRECTORY
from headrace.engine.engine import Engine, generate
from headrace.engine.model_runner import ModelRunner
from headrace.engine.structured import COMPILE_SECONDS, MAX_CACHED, MAX_CHARACTERS, GrammarFailure, Matcher
from headrace.engine.tokenizer import Tokenizer
from headrace.errors import InvalidRequest

TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16, "torch_dtype": "float32"}
LOOKUP = {"prompt_lookup_max": 3, "prompt_lookup_min": 1}
TINY |= {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 4096 + 64}
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "tags": {"type": "array", "items": {"enum": ["red", "grün", 'a "quote"']}, "minItems": 1, "maxItems": 2},
        "size": {"type": "integer", "minimum": 0, "maximum": 999},
        "old": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
    },
    "required": ["name", "tags", "size", "old"],
    "additionalProperties": False,
}
CHOICES = ["yes", "no", 'it\'s "complicated"\n', "名前 🌊"]
EXPRESSION = r"[A-Z]{2}-\d{1,4}(-(alpha|beta))?"
LARK = 'start: pair ("," pair){0,3}\npair: WORD "=" NUMBER\nWORD: /[a-z]{1,5}/\nNUMBER: /[0-9]{1,3}/'
GBNF = 'root ::= "yes" | "no " reason\nreason ::= [a-z]{1,8}'


def follows_schema(text: str) -> bool:
    value = json.loads(text)
    return (
        list(value) == list(SCHEMA["properties"])
        and isinstance(value["name"], str)
        and len(value["name"]) <= 6
        and 1 <= len(value["tags"]) <= 2
        and set(value["tags"]) <= {"red", "grün", 'a "quote"'}
        and type(value["size"]) is int
        and 0 <= value["size"] <= 999
        and value["old"] in (True, False, None)
    )


GRAMMARS: dict[str, tuple[str, str, Callable[[str], object]]] = {
    "schema": ("json", json.dumps(SCHEMA), follows_schema),
    "regex": ("regex", EXPRESSION, re.compile(EXPRESSION).fullmatch),
    "choice": ("choice", json.dumps(CHOICES), CHOICES.__contains__),
    "lark": ("grammar", LARK, re.compile(r"[a-z]{1,5}=\d{1,3}(,[a-z]{1,5}=\d{1,3}){0,3}").fullmatch),
    "gbnf": ("grammar", GBNF, re.compile(r"yes|no [a-z]{1,8}").fullmatch),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[EngineConfig, Tokenizer]:
    """The demonstration model's byte-level tokenizer; the model knows 64 ids more than it, as models often do."""
    directory = tmp_path_factory.mktemp("models") / "tiny"
    shutil.copytree(DEMO_DIRECTORY, directory, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    shape = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(shape | TINY))
    return config(str(directory)), Tokenizer(directory, vocab_size=TINY["vocab_size"])


def config(directory: str, **changes: object) -> EngineConfig:
    args = {"max_model_len": 1024, "max_num_seqs": 8, "num_gpu_blocks_override": 512, "num_threads": 1, **changes}
    return resolve(EngineArgs(model=directory, load_format="dummy", **args))[0]  # type: ignore[arg-type]


def requests(tokenizer: Tokenizer, name: str, count: int = 20) -> list[Request]:
    kind, text, _ = GRAMMARS[name]
    grammar = tokenizer.grammar(kind, text)
    prompt = tokenizer.encode("Water turns the wheel; the wheel turns the stone.")
    return [
        Request(
            f"{name}-{seed}",
            prompt[: 1 + seed % 5],
            SamplingParams(max_tokens=400, temperature=1.0, seed=seed),
            tokenizer.eos_token_ids,
            grammar=grammar,
        )
        for seed in range(count)
    ]


@pytest.mark.parametrize("name", GRAMMARS)
def test_twenty_random_answers_follow_the_grammar(world: tuple[EngineConfig, Tokenizer], name: str) -> None:
    settings, tokenizer = world
    answers = generate(Engine(settings, ModelRunner(settings)), tokenizer, requests(tokenizer, name))
    for answer in answers:
        assert answer.finish_reason is FinishReason.STOP and answer.stop_reason is None, answer
        assert GRAMMARS[name][2](answer.text), answer.text
        assert answer.token_ids[-1] in tokenizer.eos_token_ids
    assert len({answer.text for answer in answers}) > 1, "the seeds differ"


def test_preemption_and_chunks_change_no_answer(world: tuple[EngineConfig, Tokenizer]) -> None:
    settings, tokenizer = world
    asked = requests(tokenizer, "schema", 8)
    roomy = generate(Engine(settings, ModelRunner(settings)), tokenizer, asked)
    tight = config(settings.model, num_gpu_blocks_override=12, max_model_len=192, max_num_batched_tokens=16)
    engine = Engine(tight, ModelRunner(tight))
    short = [Request(r.request_id, r.prompt_token_ids, r.params, r.eos_token_ids, grammar=r.grammar) for r in asked]
    cramped = generate(engine, tokenizer, short)
    assert engine.scheduler.counters.preemptions > 0
    ended = [(a, b) for a, b in zip(roomy, cramped, strict=True) if b.finish_reason is FinishReason.STOP]
    assert len(ended) >= 6
    assert all(a.text == b.text and follows_schema(b.text) for a, b in ended)


def test_an_end_token_is_allowed_exactly_where_the_grammar_may_end(world: tuple[EngineConfig, Tokenizer]) -> None:
    _, tokenizer = world
    matcher = tokenizer.grammar("regex", "ab?").matcher()
    a, b = (tokenizer.encode(text, False)[0] for text in "ab")
    ends = set(tokenizer.eos_token_ids)

    def allowed(*output: int) -> set[int]:
        return set(matcher.allowed(output).nonzero().flatten().tolist())

    assert allowed() >= {a} and not allowed() & ends
    assert allowed(a) == {b} | ends
    assert allowed(a, b) == ends


def test_a_token_that_the_grammar_forbids_is_an_error(world: tuple[EngineConfig, Tokenizer]) -> None:
    matcher = world[1].grammar("regex", "ab?").matcher()
    with pytest.raises(GrammarFailure):
        matcher.allowed(world[1].encode("z", False))


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        ("json", '{"type": "nope"}', "nope"),
        ("json", "[]", "object"),
        ("json", "{", "EOF"),
        ("json", '{"type": "array", "uniqueItems": true}', "uniqueItems"),
        ("json", '{"$ref": "http://127.0.0.1/schema"}', "127.0.0.1"),  # nothing is fetched
        ("json", '{"anyOf": [{"$ref": "#"}]}', "no text"),
        ("json", '{"items": ' * 100 + "{}" + "}" * 100, "deeper than 64"),
        ("regex", "(", "unclosed"),
        ("regex", "(?=a)b", "look-ahead"),
        ("grammar", "start: other", "other"),
        ("grammar", 'root ::= "a" nope', "nope"),
        ("regex", "a" * (MAX_CHARACTERS + 1), "at most"),
        ("json", '{"type": "integer", "multipleOf": 99999999}', "within"),  # minutes, in a thread nobody could stop
        ("regex", "a{1000000}", "too many|within"),
        ("regex", "(a{1000}){1000}", "too many|within"),
        (
            "json",
            json.dumps({"allOf": [{"anyOf": [{"minLength": i * j} for i in range(9)]} for j in range(12)]}),
            "too large",
        ),
    ],
    ids=lambda value: str(value)[:24],
)
def test_what_cannot_be_followed_is_refused_in_time(
    world: tuple[EngineConfig, Tokenizer], kind: str, text: str, reason: str
) -> None:
    begun = time.monotonic()
    with pytest.raises(InvalidRequest, match=reason):
        world[1].grammar(kind, text)
    assert time.monotonic() - begun < 2 * COMPILE_SECONDS


@pytest.mark.parametrize("text", ["(a+)+b", "(x+x+)+y", "(a|aa)+c", r"(\w+\s?)*z", "(.*a){12}", "(.*.*.*.*)*x"])
def test_patterns_that_blow_up_backtracking_matchers_cost_nothing(
    world: tuple[EngineConfig, Tokenizer], text: str
) -> None:
    matcher = world[1].grammar("regex", text).matcher()
    letters = world[1].encode("a", False) * 200 if "a" in text else world[1].encode("x", False) * 200
    for length in range(0, 200, 10):
        assert matcher.allowed(letters[:length]).any()


def test_equal_grammars_are_compiled_once_and_the_cache_is_bounded(world: tuple[EngineConfig, Tokenizer]) -> None:
    tokenizer = world[1]
    first = tokenizer.grammar("regex", "[0-9]{4}")
    assert tokenizer.grammar("regex", "[0-9]{4}") is first
    for number in range(MAX_CACHED):
        tokenizer.grammar("regex", f"x{number}")
    assert tokenizer.grammar("regex", "[0-9]{4}") is not first
    assert len(tokenizer._grammars._cache) == MAX_CACHED


def test_speculation_changes_no_answer(world: tuple[EngineConfig, Tokenizer]) -> None:
    """The grammar goes ahead over drafts and back again; half of the drafts break it."""
    settings, tokenizer = world
    asked = [request for name in ("schema", "lark", "regex") for request in requests(tokenizer, name, 6)]
    drafting = config(settings.model, speculative_config={"method": "ngram", "num_speculative_tokens": 5} | LOOKUP)
    engine = Engine(drafting, ModelRunner(drafting))
    plain = generate(Engine(settings, ModelRunner(settings)), tokenizer, asked)
    assert [answer.token_ids for answer in generate(engine, tokenizer, asked)] == [answer.token_ids for answer in plain]
    counters = engine.scheduler.counters
    assert counters.accepted_tokens > 10 and counters.draft_tokens > 2 * counters.accepted_tokens


def test_a_matcher_goes_back_over_drafts(world: tuple[EngineConfig, Tokenizer]) -> None:
    _, tokenizer = world
    a, b, c = (tokenizer.encode(text, False)[0] for text in "abc")
    grammar = tokenizer.grammar("regex", "ab?")
    matcher, late = grammar.matcher(), grammar.behind(c).matcher()

    def allowed(one: Matcher, *output: int) -> set[int] | None:
        mask = one.allowed(output)
        return None if mask is None else set(mask.nonzero().flatten().tolist())

    assert matcher.takes([a, b]) and not matcher.takes([a, a])
    first = allowed(matcher, a)
    assert allowed(matcher, a, b) == set(tokenizer.eos_token_ids)
    matcher.rewind(1)
    assert allowed(matcher, a) == first
    matcher.rewind(0)
    assert a in (allowed(matcher) or ())
    # The grammar begins behind c, which was a wrong draft: before it everything is free again.
    assert allowed(late, b) is None and allowed(late, b, c, a) == first
    late.rewind(1)
    assert allowed(late, b, a) is None
    assert allowed(late, b, a, c, a) == first
    late.rewind(3)
    assert b not in (allowed(late, b, a, c) or ()), "the beginning stays where it is when only what follows it goes"
