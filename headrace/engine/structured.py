"""Structured output: a grammar becomes, for every position, the set of tokens that may come next.

llguidance does the work: derivatives of regular expressions and an Earley parser over the tokenizer's trie, so nothing
backtracks and every step is bounded.  Here: compiling beside the steps with a time limit, a bounded cache, and the
matcher that follows one sequence.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout

import llguidance
import numpy as np
import torch
from llguidance.gbnf_to_lark import any_to_lark
from torch import Tensor

from headrace.errors import HeadraceError, InvalidRequest

MAX_CHARACTERS = 65_536
MAX_DEPTH = 64
MAX_CACHED = 64
COMPILE_SECONDS = 2.0
QUEUE_SECONDS = 30.0
# A state of the lexer takes 1 to 2 kB, and each sequence has its own: 20 to 40 MB at worst.  Everyday schemas have some
# hundred.  The grammar's size bounds the time to compile it (0.1 s for a thousand properties, measured).
_LIMITS = {"max_lexer_states": 20_000, "max_grammar_size": 100_000, "verbose_errors": False}
# A small model likes to fill gaps with white space for ever; twenty characters indent anything that is sensible.
_JSON_OPTIONS = {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{0,20}"}


class GrammarFailure(HeadraceError):
    """A grammar that compiled turned out too complex for one step; the text says how."""


class Matcher:
    """Follows one sequence through its grammar."""

    def __init__(self, inner: llguidance.LLMatcher, vocab_size: int, after: int | None = None) -> None:
        self._inner = inner
        self._vocab_size = vocab_size
        self._after = after
        self._consumed = 0

    def allowed(self, output: Sequence[int]) -> Tensor | None:
        """Which tokens may follow `output`, bool `[vocab_size]`; end tokens only where the grammar may end.

        None while everything may follow.  `output` must begin with what was given last time: tokens are only ever
        added.  Raises GrammarFailure.
        """
        if self._after is not None:
            news, self._consumed = output[self._consumed :], len(output)
            if self._after not in news:
                return None
            self._consumed -= len(news) - 1 - list(news).index(self._after)
            self._after = None
        try:
            for token in output[self._consumed :]:
                self._inner.consume_token(token)
            self._consumed = len(output)
            bits = b"" if self._inner.is_error() else self._inner.compute_bitmask()
        except BaseException as error:  # a panic of the library is no Exception, and must not end the step loop
            raise GrammarFailure(f"{type(error).__name__}: {error}") from None
        if self._inner.is_error():
            raise GrammarFailure(_first_line(self._inner.get_error()))
        mask = np.unpackbits(np.frombuffer(bits, dtype=np.uint8), bitorder="little")[: self._vocab_size]
        return torch.from_numpy(mask).to(torch.bool)


class Grammar:
    """One compiled grammar for one tokenizer; shared by all requests that ask for it."""

    def __init__(self, compiled: llguidance.LLMatcher, vocab_size: int, after: int | None = None) -> None:
        self._compiled = compiled
        self._vocab_size = vocab_size
        self._after = after

    def behind(self, token_id: int) -> Grammar:
        """The same grammar for what follows the first `token_id`; before it everything is free."""
        return Grammar(self._compiled, self._vocab_size, token_id)

    def matcher(self) -> Matcher:
        """A matcher at the beginning of the text."""
        return Matcher(self._compiled.deep_copy(), self._vocab_size, self._after)


class GrammarCompiler:
    """Grammars for one tokenizer.  Thread-safe; call it from a thread that may wait, never from the step loop.

    tokenizer_json   the text of tokenizer.json
    vocab_size       ids that the model knows; those above the tokenizer's own are never allowed
    """

    def __init__(self, tokenizer_json: str, vocab_size: int, eos_token_ids: Iterable[int]) -> None:
        self._json = tokenizer_json
        self._vocab_size = vocab_size
        self._eos = sorted(eos_token_ids)
        self._tokenizer: llguidance.LLTokenizer | None = None
        self._cache: OrderedDict[tuple[str, str], Grammar] = OrderedDict()
        self._lock = threading.Lock()
        # One worker: a client with slow grammars takes time from others with grammars, not from the steps.
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="grammars")

    def compile(self, kind: str, text: str) -> Grammar:
        """The grammar of `text`: a JSON schema ("json"), a regular expression ("regex"), a JSON list of answers
        ("choice"), or a grammar in Lark's or GBNF's notation ("grammar").

        Raises InvalidRequest for what is no grammar, accepts nothing, or is too large.
        """
        if len(text) > MAX_CHARACTERS:
            raise InvalidRequest(f"it has {len(text):,} characters; at most {MAX_CHARACTERS:,} are taken")
        key = (kind, text)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        self._worker.submit(self._load_tokenizer).result()
        begun = threading.Event()
        job = self._worker.submit(self._compile, kind, text, begun)
        begun.wait(QUEUE_SECONDS)  # others' grammars do not count
        try:
            grammar = job.result(COMPILE_SECONDS)
        except FutureTimeout:
            job.cancel()
            raise InvalidRequest(f"it was not compiled within {COMPILE_SECONDS:g} s") from None
        with self._lock:
            self._cache[key] = grammar
            while len(self._cache) > MAX_CACHED:
                self._cache.popitem(last=False)
        return grammar

    def _load_tokenizer(self) -> None:
        """Once, and not counted against a grammar's time: half a second for 50,000 tokens."""
        if self._tokenizer is not None:
            return
        if not self._eos:
            raise InvalidRequest("this model has no end token, so an answer could not end where its grammar does")
        try:
            own = llguidance.LLTokenizer(self._json, eos_token=self._eos)
            size = max(own.vocab_size, self._vocab_size)
            self._tokenizer = llguidance.LLTokenizer(self._json, n_vocab=size, eos_token=self._eos)
        except Exception as error:
            raise InvalidRequest(f"this model's tokenizer cannot be constrained ({_first_line(str(error))})") from None

    def _compile(self, kind: str, text: str, begun: threading.Event) -> Grammar:
        begun.set()
        try:
            source = _source(kind, text)
        except InvalidRequest:
            raise
        except Exception as error:
            raise InvalidRequest(_first_line(str(error))) from None
        limits = llguidance.LLParserLimits(**_LIMITS)
        compiled = llguidance.LLMatcher(self._tokenizer, source, log_level=0, limits=limits)
        _try_out(compiled)
        return Grammar(compiled, self._vocab_size)


def _source(kind: str, text: str) -> str:
    """The grammar in llguidance's own form."""
    matcher = llguidance.LLMatcher
    if kind == "json":
        if _depth(text) > MAX_DEPTH:
            raise InvalidRequest(f"it is nested deeper than {MAX_DEPTH} levels")
        return str(matcher.grammar_from_json_schema(text, overrides=_JSON_OPTIONS))
    if kind == "regex":
        return str(matcher.grammar_from_regex(text))
    if kind == "choice":
        choices = " | ".join(json.dumps(each, ensure_ascii=False) for each in json.loads(text))
        return str(matcher.grammar_from_lark(f"start: {choices}"))
    return str(matcher.grammar_from_lark(any_to_lark(text)))


def _try_out(compiled: llguidance.LLMatcher) -> None:
    """Two steps on a copy: much is checked only there, such as repetitions that no step could pay for."""
    trial = compiled.deep_copy()
    _check(trial)
    for _ in range(2):
        allowed = np.unpackbits(np.frombuffer(trial.compute_bitmask(), dtype=np.uint8), bitorder="little").nonzero()[0]
        _check(trial)
        if trial.is_stopped():
            return
        trial.consume_token(int(allowed[-1]))
        _check(trial)


def _check(matcher: llguidance.LLMatcher) -> None:
    if matcher.is_error():
        error = _first_line(matcher.get_error())
        raise InvalidRequest("no text satisfies it" if error.startswith("NoExtension") else error)


def _depth(text: str) -> int:
    """Nesting of brackets outside strings: libraries that recurse must not be led deeper than they can return."""
    depth = deepest = 0
    in_string = escaped = False
    for character in text:
        if in_string:
            in_string = escaped or character != '"'
            escaped = character == "\\" and not escaped
        elif character == '"':
            in_string = True
        elif character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("<")]
    return " ".join(lines)[:300].rstrip(".") or "the grammar cannot be used"
