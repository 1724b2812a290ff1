"""What a client calls a grammar -> llguidance's own form, and whether it can be followed.

Imports no torch: the process that tries grammars out (grammar_trial.py) must start fast.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import llguidance
import numpy as np
from llguidance.gbnf_to_lark import any_to_lark

from headrace.engine.structural_tags import grammars_of
from headrace.errors import InvalidRequest

MAX_DEPTH = 64
# A state of the lexer takes 1 to 2 kB, and each sequence has its own: 20 to 40 MB at worst.  Everyday schemas have some
# hundred.  The grammar's size bounds the time to compile it (0.1 s for a thousand properties, measured).
_LIMITS = {"max_lexer_states": 20_000, "max_grammar_size": 100_000, "verbose_errors": False}
# A small model likes to fill gaps with white space for ever; twenty characters indent anything that is sensible.
_JSON_OPTIONS = {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{0,20}"}


def open_tokenizer(tokenizer_json: str, vocab_size: int, eos_token_ids: Sequence[int]) -> llguidance.LLTokenizer:
    """llguidance's view of a tokenizer.  Raises InvalidRequest for one that it cannot use."""
    if not eos_token_ids:
        raise InvalidRequest("this model has no end token, so an answer could not end where its grammar does")
    try:
        own = llguidance.LLTokenizer(tokenizer_json, eos_token=list(eos_token_ids))
        size = max(own.vocab_size, vocab_size)
        return llguidance.LLTokenizer(tokenizer_json, n_vocab=size, eos_token=list(eos_token_ids))
    except Exception as error:
        raise InvalidRequest(f"this model's tokenizer cannot be constrained ({first_line(str(error))})") from None


def compile_grammar(tokenizer: llguidance.LLTokenizer, kind: str, text: str) -> llguidance.LLMatcher:
    """A matcher at the beginning of its grammar.  Raises InvalidRequest."""
    try:
        sources = sources_of(kind, text)
    except InvalidRequest:
        raise
    except Exception as error:
        raise InvalidRequest(first_line(str(error))) from None
    limits = llguidance.LLParserLimits(**_LIMITS)
    for source in sources:
        compiled = llguidance.LLMatcher(tokenizer, source, log_level=0, limits=limits)
        if not compiled.is_error():
            break
    try_out(compiled)
    return compiled


def sources_of(kind: str, text: str) -> list[str]:
    """The grammar in llguidance's own form, several when only the tokenizer can tell which of them is meant."""
    if kind in ("json", "structural_tag") and _depth(text) > MAX_DEPTH:
        raise InvalidRequest(f"it is nested deeper than {MAX_DEPTH} levels")
    if kind == "structural_tag":
        return [str(llguidance.LLMatcher.grammar_from_lark(each)) for each in grammars_of(text, _JSON_OPTIONS)]
    return [_source_of(kind, text)]


def _source_of(kind: str, text: str) -> str:
    matcher = llguidance.LLMatcher
    if kind == "json":
        return str(matcher.grammar_from_json_schema(text, overrides=_JSON_OPTIONS))
    if kind == "regex":
        return str(matcher.grammar_from_regex(text))
    if kind == "choice":
        choices = " | ".join(json.dumps(each, ensure_ascii=False) for each in json.loads(text))
        return str(matcher.grammar_from_lark(f"start: {choices}"))
    return str(matcher.grammar_from_lark(any_to_lark(text)))


def try_out(compiled: llguidance.LLMatcher) -> None:
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
        error = first_line(matcher.get_error())
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


def first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("<")]
    return " ".join(lines)[:300].rstrip(".") or "the grammar cannot be used"
