"""Streaming text: pieces join to the one-shot decode, characters stay whole, stop strings never leak."""

from __future__ import annotations

import codecs
import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headrace.core.request import SamplingParams
from headrace.engine.demo import DEMO_DIRECTORY
from headrace.engine.detokenizer import REPLACEMENT, Detokenizer, IncrementalDecoder, StopMatcher
from headrace.engine.tokenizer import Tokenizer

TEXTS = st.text(
    st.one_of(
        st.characters(min_codepoint=32, max_codepoint=126),
        st.sampled_from("äßñ€你好世界こんにちは😀👩‍👩‍👧🇩🇪\u200d\n\t  ▁Ġ"),
        st.characters(exclude_categories=("Cs",)),
    ),
    max_size=40,
)


@pytest.fixture(scope="module")
def demo() -> Tokenizer:
    return Tokenizer(DEMO_DIRECTORY)


@pytest.fixture(scope="module", params=["TinyLlama_v1.1", "gpt-neox-20b"])
def real(request: pytest.FixtureRequest, shared_data: Path) -> Tokenizer:
    return Tokenizer(shared_data / "tokenizers" / request.param)


def stream(tokenizer: Tokenizer, ids: Sequence[int], *, skip: bool = True, prompt: Sequence[int] = ()) -> list[str]:
    detokenizer = tokenizer.detokenizer(SamplingParams(skip_special_tokens=skip), prompt)
    return [*(detokenizer.push(token) for token in ids), detokenizer.flush()]


@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
@example(text="😀😀😀")
@example(text="�")
def test_streamed_pieces_join_to_the_one_shot_decode(demo: Tokenizer, text: str) -> None:
    ids = demo.encode(text)
    assert "".join(stream(demo, ids)) == demo.decode(ids) == text


@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
def test_real_tokenizers_stream_what_they_decode(real: Tokenizer, text: str) -> None:
    ids = real.encode(text, add_special_tokens=False)
    assert "".join(stream(real, ids)) == real.decode(ids)


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, 4095), max_size=60), skip=st.booleans())
def test_ids_that_are_no_text_stream_what_they_decode(demo: Tokenizer, ids: list[int], skip: bool) -> None:
    assert "".join(stream(demo, ids, skip=skip)) == demo.decode(ids, skip_special_tokens=skip)


def test_a_run_of_broken_bytes_is_not_held_for_ever(demo: Tokenizer) -> None:
    lone = demo.encode("你")[0]  # the first byte of a character
    pieces = stream(demo, [lone] * 500)
    assert "".join(pieces) == REPLACEMENT * 500
    assert "".join(pieces[:100]) != ""


def test_a_character_is_sent_whole_with_its_last_byte(demo: Tokenizer) -> None:
    ids = demo.encode("😀")
    assert len(ids) == 4
    assert stream(demo, ids) == ["", "", "", "😀", ""]


def test_an_unfinished_character_is_shown_at_the_end(demo: Tokenizer) -> None:
    assert stream(demo, demo.encode("a😀")[:-1]) == ["a", "", "", "", REPLACEMENT]


def test_the_output_continues_the_prompt_and_keeps_its_leading_space(shared_data: Path) -> None:
    llama = Tokenizer(shared_data / "tokenizers" / "TinyLlama_v1.1")
    prompt, world = llama.encode("hello"), llama.encode("world", add_special_tokens=False)
    assert "".join(stream(llama, world, prompt=prompt)) == " world"


def test_goldens_of_real_tokenizers(real: Tokenizer, shared_data: Path) -> None:
    import json

    name = "TinyLlama_v1.1" if real.num_tokens < 40_000 else "gpt-neox-20b"
    goldens = json.loads((shared_data / "tokenizers" / name / "golden_encodings.json").read_text())["entries"]
    assert len(goldens) > 40
    for golden in goldens:
        assert real.encode(golden["text"]) == golden["ids_special"]
        assert real.encode(golden["text"], add_special_tokens=False) == golden["ids"]
        assert "".join(stream(real, golden["ids"], skip=False)) == golden["decode"]
        assert "".join(stream(real, golden["ids_special"])) == golden["decode_skip_special"]


def test_the_cost_of_a_token_does_not_grow_with_the_text() -> None:
    lengths: list[int] = []

    def decode(ids: Sequence[int]) -> str:
        lengths.append(len(ids))
        return codecs.decode(bytes(ids), "utf-8", "replace")

    decoder = IncrementalDecoder(decode)
    text = ("wörter 你好 😀 " * 500).encode()
    assert "".join([*map(decoder.push, text), decoder.flush()]).encode() == text
    assert max(lengths) <= 16
    assert len(lengths) <= 2 * len(text) + 1


# -- stop strings -------------------------------------------------------------------------------------------------


def split(text: str, cuts: Sequence[int]) -> list[str]:
    borders = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[a:b] for a, b in itertools.pairwise(borders)]


def truth(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """The slow, obvious twin: the stop string that is complete first, in the caller's order when two are."""
    for end in range(1, len(text) + 1):
        for stop in stops:
            if text[:end].endswith(stop):
                return text[: end - len(stop)], stop
    return text, None


@settings(max_examples=400, deadline=None)
@given(
    text=st.text("ab", max_size=30),
    stops=st.lists(st.text("ab", min_size=1, max_size=6), min_size=1, max_size=3),
    cuts=st.lists(st.integers(0, 30), max_size=10),
    include=st.booleans(),
)
@example(text="aaab", stops=["aab"], cuts=[], include=False)  # the match begins inside a failed one
def test_stop_strings_are_found_wherever_the_pieces_end(
    text: str, stops: list[str], cuts: list[int], include: bool
) -> None:
    before, stop = truth(text, stops)
    matcher = StopMatcher(stops, include=include)
    sent = ""
    for piece in split(text, cuts):
        sent += matcher.push(piece)
        # Whatever is sent may stay: it is never part of a stop string that ends later.
        assert before.startswith(sent) or (include and matcher.matched)
    sent += "" if matcher.matched else matcher.flush()
    assert matcher.matched == stop
    assert sent == (before + stop if include and stop else before)


def test_only_what_could_become_a_stop_string_is_held() -> None:
    matcher = StopMatcher(["\n\nUser:"])
    assert matcher.push("Hello\n") == "Hello"
    assert matcher.push("you") == "\nyou"
    assert matcher.push("\n\nUs") == ""
    assert matcher.flush() == "\n\nUs"


def test_a_stop_string_across_token_borders(demo: Tokenizer) -> None:
    detokenizer = demo.detokenizer(SamplingParams(stop=("END",)), ())
    ids = [*demo.encode("one E"), *demo.encode("N"), *demo.encode("D two")]
    pieces = []
    for token in ids:
        pieces.append(detokenizer.push(token))
        if detokenizer.stopped_by:
            break
    assert ("".join(pieces), detokenizer.stopped_by, detokenizer.flush()) == ("one ", "END", "")


def test_a_stop_string_does_not_count_before_min_tokens(demo: Tokenizer) -> None:
    detokenizer = demo.detokenizer(SamplingParams(stop=("a",), min_tokens=2), ())
    a = demo.encode("a")[0]
    assert [detokenizer.push(a), detokenizer.push(a)] == ["a", "a"]
    assert detokenizer.push(a) == ""
    assert detokenizer.stopped_by == "a"


def test_special_tokens_are_text_only_on_demand(demo: Tokenizer) -> None:
    ids = [*demo.encode("hi"), 2]
    assert "".join(stream(demo, ids)) == "hi"
    assert "".join(stream(demo, ids, skip=False)) == "hi<|im_end|>"


def test_a_silent_token_counts_but_shows_nothing() -> None:
    detokenizer = Detokenizer(lambda ids: "".join(map(chr, ids)), stop=("x",))
    assert detokenizer.push(ord("a")) == "a"
    assert detokenizer.push(ord("x"), silent=True) == ""
    assert detokenizer.stopped_by is None


def test_special_tokens_are_joined_without_spaces_on_demand() -> None:
    """A decoder that puts a space before every token: between two special tokens it is left out, elsewhere it stays."""
    words = {1: "<a>", 2: "<b>", 3: "word"}

    def text_of(marks: dict[int, str]) -> str:
        detokenizer = Detokenizer(lambda ids: " ".join(words[token] for token in ids), marks=marks)
        return "".join(detokenizer.push(token) for token in (3, 1, 2, 1, 3, 3)) + detokenizer.flush()

    assert text_of({}) == "word <a> <b> <a> word word"
    assert text_of({1: "<a>", 2: "<b>"}) == "word <a><b><a> word word"
