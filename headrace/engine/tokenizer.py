"""A Hugging Face tokenizer directory: text <-> ids, the chat template, and the model's end tokens.

Reads tokenizer.json with the `tokenizers` library; transformers is not needed at run time.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as HubTokenizer

from headrace.core.request import SamplingParams
from headrace.engine.chat_template import ChatTemplate
from headrace.engine.config import EngineConfig
from headrace.engine.detokenizer import NO_MARKS, Detokenizer
from headrace.engine.model_files import read_json
from headrace.engine.structured import Grammar, GrammarCompiler
from headrace.errors import ConfigError, InvalidRequest

_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# generation_config.json's names -> SamplingParams' (the ones vLLM takes over)
_SAMPLING_NAMES = {
    "repetition_penalty": "repetition_penalty",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "max_new_tokens": "max_tokens",
}

_SAMPLING_RANGES = {
    "repetition_penalty": (1e-6, 100.0),
    "temperature": (0.0, 100.0),
    "top_k": (-1, 1 << 31),
    "top_p": (1e-6, 1.0),
    "min_p": (0.0, 1.0),
    "max_new_tokens": (1, 1 << 31),
}


class Tokenizer:
    """Safe to call from any thread.

    vocab_size       number of ids that the model knows; ids above the tokenizer's own have no text
    eos_token_ids    every id that ends an answer (generation_config.json, config.json, the tokenizer's own)
    """

    def __init__(
        self,
        directory: Path,
        *,
        model_directory: Path | None = None,
        vocab_size: int | None = None,
        chat_template: str | None = None,
    ) -> None:
        path = directory / "tokenizer.json"
        try:
            self._hub = HubTokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for everything
            raise ConfigError(f"{path} is not a tokenizer that can be read ({error})") from None
        self._hub.no_truncation()
        self._hub.no_padding()
        self.num_tokens = self._hub.get_vocab_size(with_added_tokens=True)
        self.vocab_size = self.num_tokens if vocab_size is None else vocab_size
        added = self._hub.get_added_tokens_decoder()
        self._added = {token_id: str(token.content) for token_id, token in added.items()}
        self._special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self.special_tokens = _special_tokens(directory)
        self.eos_token_ids = self._eos_token_ids(model_directory or directory)
        text = chat_template if chat_template is not None else _own_template(directory)
        self._template = None if text is None else ChatTemplate(text, self.special_tokens)
        self._grammars: GrammarCompiler | None = None
        self._lock = threading.Lock()

    @classmethod
    def from_config(cls, config: EngineConfig, *, vocab_size: int | None = None) -> Tokenizer:
        """The tokenizer of a resolved configuration; `vocab_size` is the model's."""
        return cls(
            Path(config.tokenizer),
            model_directory=config.model_path,
            vocab_size=vocab_size,
            chat_template=config.chat_template,
        )

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Ids of `text`; `add_special_tokens` lets the tokenizer add what it adds (a BOS, usually)."""
        ids: list[int] = self._hub.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        text: str = self._hub.decode(ids, skip_special_tokens=skip_special_tokens)
        return text

    def token_text(self, token_id: int) -> str:
        """The text of one token by itself; part of a character shows as U+FFFD."""
        return self.decode([token_id], skip_special_tokens=False)

    def token_id(self, text: str) -> int | None:
        """The id of the token that is exactly `text`, or None."""
        found: int | None = self._hub.token_to_id(text)
        return None if found is None or found >= self.vocab_size else found

    def spellings(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Token ids of each word at the start of a text and after a space, for `bad_words_token_ids`.

        vLLM leaves the second out where it has another number of tokens; then " word" could be said.
        """
        found: list[tuple[int, ...]] = []
        for word in words:
            bare = word.lstrip()
            for text in (bare, " " + bare) if bare else (word,):
                found.append(tuple(self.encode(text, add_special_tokens=False)))
        return tuple(dict.fromkeys(ids for ids in found if ids and max(ids) < self.vocab_size))

    def grammar(self, kind: str, text: str, after: str = "") -> Grammar:
        """Compile what an output must follow (see `GrammarCompiler.compile`); may take seconds.

        With `after`, everything up to the token with that text is free (reasoning).  Raises InvalidRequest.
        """
        mark = self._hub.token_to_id(after) if after else None
        if after and mark is None:
            raise InvalidRequest(f"{after} is no token of this model, so it cannot be told where the answer begins")
        with self._lock:
            if self._grammars is None:
                self._grammars = GrammarCompiler(self._hub.to_str(), self.vocab_size, self.eos_token_ids)
        grammar = self._grammars.compile(kind, text)
        return grammar if mark is None else grammar.behind(mark)

    @property
    def has_chat_template(self) -> bool:
        return self._template is not None

    def template_reads(self, variable: str) -> bool:
        """Whether the chat template looks at a variable: else the model would never hear of it."""
        return self._template is not None and self._template.reads(variable)

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """A conversation as the text that the model was trained on.  Raises InvalidRequest."""
        if self._template is None:
            raise InvalidRequest(
                "This model has no chat template; use /v1/completions, or start the server with --chat-template.",
                param="messages",
                code="no_chat_template",
            )
        return self._template.render(messages, add_generation_prompt, **variables)

    def detokenizer(self, params: SamplingParams, prompt_token_ids: Sequence[int]) -> Detokenizer:
        """The streaming decoder of one request's output."""
        return Detokenizer(
            self._decode_all,
            context=prompt_token_ids,
            skipped=self._special_ids if params.skip_special_tokens else frozenset(),
            stop=params.stop,
            include_stop=params.include_stop_str_in_output,
            min_tokens=params.min_tokens,
            # As in vLLM: where special tokens are left out there is nothing to join.
            marks=NO_MARKS if params.skip_special_tokens or params.spaces_between_special_tokens else self._added,
        )

    def _decode_all(self, ids: Sequence[int]) -> str:
        text: str = self._hub.decode(ids, skip_special_tokens=False)
        return text

    def _eos_token_ids(self, model_directory: Path) -> frozenset[int]:
        found: set[int] = set()
        for name in ("generation_config.json", "config.json"):
            path = model_directory / name
            value = read_json(path).get("eos_token_id") if path.is_file() else None
            values = value if isinstance(value, list) else [value]
            found.update(each for each in values if isinstance(each, int) and not isinstance(each, bool))
        own = self.special_tokens.get("eos_token")
        own_id = None if own is None else self._hub.token_to_id(own)
        if own_id is not None:
            found.add(own_id)
        return frozenset(found)


def sampling_defaults(model_directory: Path, policy: str) -> dict[str, Any]:
    """The model author's sampling parameters, under SamplingParams' names.

    `policy` "auto" reads generation_config.json as vLLM does, "vllm" ignores it.  Values of a wrong type are left out;
    ConfigError for one that no request could ask for: it would meet every request that sets nothing.
    """
    path = model_directory / "generation_config.json"
    if policy == "vllm" or not path.is_file():
        return {}
    stored = read_json(path)
    kinds: dict[str, type | tuple[type, ...]] = {"top_k": int, "max_new_tokens": int}
    found: dict[str, Any] = {}
    for theirs, ours in _SAMPLING_NAMES.items():
        value = stored.get(theirs)
        if isinstance(value, kinds.get(theirs, (int, float))) and not isinstance(value, bool):
            low, high = _SAMPLING_RANGES[theirs]
            if not low <= value <= high:
                raise ConfigError(
                    f"{path}: {theirs} is {value}, it must be between {low:g} and {high:g}; correct it, or ignore the "
                    "file with --generation-config vllm"
                )
            found[ours] = value
    return found


def _special_tokens(directory: Path) -> dict[str, str]:
    """bos_token, eos_token, …: texts that chat templates use.  tokenizer_config.json wins over the older file."""
    tokens: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = directory / name
        stored = read_json(path) if path.is_file() else {}
        for key in _SPECIAL_NAMES:
            value = stored.get(key)
            if isinstance(value, dict):
                value = value.get("content")
            if isinstance(value, str):
                tokens[key] = value
    return tokens


def _own_template(directory: Path) -> str | None:
    """chat_template.jinja, else tokenizer_config.json's `chat_template` (a text, or a list of named ones)."""
    path = directory / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} cannot be read as text ({error})") from None
    config = directory / "tokenizer_config.json"
    value = read_json(config).get("chat_template") if config.is_file() else None
    if isinstance(value, list):
        named = {each.get("name"): each.get("template") for each in value if isinstance(each, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else None
