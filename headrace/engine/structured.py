"""Structured output: a grammar becomes, for every position, the set of tokens that may come next.

llguidance does the work: derivatives of regular expressions and an Earley parser over the tokenizer's trie, so nothing
backtracks and every step is bounded.  Here: compiling beside the steps with a time limit, a bounded cache, and the
matcher that follows one sequence.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import llguidance
import numpy as np
import torch
from torch import Tensor

from headrace.engine.grammar_source import compile_grammar, first_line, open_tokenizer
from headrace.engine.grammar_trial import GrammarTrial
from headrace.errors import HeadraceError, InvalidRequest

MAX_CHARACTERS = 65_536
MAX_CACHED = 64
COMPILE_SECONDS = 2.0


class GrammarFailure(HeadraceError):
    """A grammar that compiled turned out too complex for one step; the text says how."""


class Matcher:
    """Follows one sequence through its grammar."""

    def __init__(self, inner: llguidance.LLMatcher, vocab_size: int, after: int | None = None) -> None:
        self._inner = inner
        self._vocab_size = vocab_size
        self._after = after
        self._begin = 0 if after is None else None  # how many tokens stand before the grammar's text
        self._consumed = 0

    def allowed(self, output: Sequence[int]) -> Tensor | None:
        """Which tokens may follow `output`, bool `[vocab_size]`; end tokens only where the grammar may end.

        None while everything may follow.  `output` must begin with what was taken in before, which it adds to.
        Raises GrammarFailure.
        """
        if self._begin is None:
            news, self._consumed = output[self._consumed :], len(output)
            if self._after not in news:
                return None
            self._begin = self._consumed = self._consumed - (len(news) - 1 - list(news).index(self._after))
        try:
            for token in output[self._consumed :]:
                self._inner.consume_token(token)
            self._consumed = len(output)
            bits = b"" if self._inner.is_error() else self._inner.compute_bitmask()
        except BaseException as error:  # a panic of the library is no Exception, and must not end the step loop
            raise GrammarFailure(f"{type(error).__name__}: {error}") from None
        if self._inner.is_error():
            raise GrammarFailure(first_line(self._inner.get_error()))
        mask = np.unpackbits(np.frombuffer(bits, dtype=np.uint8), bitorder="little")[: self._vocab_size]
        return torch.from_numpy(mask).to(torch.bool)

    def takes(self, output: Sequence[int]) -> bool:
        """Whether the grammar allows what `output` adds to what was taken in: a draft may be anything."""
        news = list(output[self._consumed :])
        return self._begin is None or not news or int(self._inner.validate_tokens(news)) == len(news)

    def rewind(self, num_tokens: int) -> None:
        """Forget what was taken in behind the first `num_tokens` tokens of the output."""
        if num_tokens >= self._consumed:
            return
        if self._begin is not None:
            self._inner.rollback(self._consumed - max(num_tokens, self._begin))
            if self._after is not None and num_tokens < self._begin:
                self._begin = None
        self._consumed = num_tokens


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
        self._trial: GrammarTrial | None = None
        self._cache: OrderedDict[tuple[str, str], Grammar] = OrderedDict()
        self._lock = threading.Lock()
        # One worker: a client with slow grammars takes time from others with grammars, not from the steps.
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="grammars")

    def compile(self, kind: str, text: str) -> Grammar:
        """The grammar of `text`: a JSON schema ("json"), a regular expression ("regex"), a JSON list of answers
        ("choice"), a grammar in Lark's or GBNF's notation ("grammar"), or a structural tag in JSON ("structural_tag").

        Raises InvalidRequest for what is no grammar, accepts nothing, or is too large.
        """
        if len(text) > MAX_CHARACTERS:
            raise InvalidRequest(f"it has {len(text):,} characters; at most {MAX_CHARACTERS:,} are taken")
        key = (kind, text)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        grammar = self._worker.submit(self._compile, kind, text).result()
        with self._lock:
            self._cache[key] = grammar
            while len(self._cache) > MAX_CACHED:
                self._cache.popitem(last=False)
        return grammar

    def _load(self) -> None:
        """Once, and not counted against a grammar's time: half a second for 50,000 tokens."""
        if self._tokenizer is None:
            tokenizer = open_tokenizer(self._json, self._vocab_size, self._eos)
            self._trial = GrammarTrial(self._json, self._vocab_size, self._eos)
            self._tokenizer = tokenizer

    def _compile(self, kind: str, text: str) -> Grammar:
        self._load()
        assert self._trial is not None
        # First in a process that can be ended: some grammars take minutes or gigabytes, and no thread can be stopped.
        self._trial.check(kind, text, COMPILE_SECONDS)
        return Grammar(compile_grammar(self._tokenizer, kind, text), self._vocab_size)
