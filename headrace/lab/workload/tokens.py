"""Counting and making tokens without the engine: from a tokenizer.json, or through the server's own /tokenize."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from headrace.errors import ConfigError
from headrace.lab.http import Peer

# Plain words for synthetic prompts.  Only their token ids matter: ids that a real text of the model's language
# produces, so that prompts survive decoding and encoding, which ids drawn from the whole vocabulary do not.
_WORDS = (
    "about after again air all along also always another answer around back because been before began being below"
    " between book both boat bring build call came can carry change city close cold color come could country cover"
    " cut dark day did different does door down draw each early earth east eat end enough even every example eye"
    " face family far farm fast father feet few field find fire first fish five follow food form found four friend"
    " from full game gave girl give good great green ground group grow half hand hard head hear heat help here"
    " high hold home horse hot hour house idea inch just keep kind king knew know land large last late laugh learn"
    " leave left letter life light line list little live long look love made main make man many map mark mean"
    " measure men might mile mind money moon more morning most mother mountain move much music name near need"
    " never new next night north note nothing notice now number off often old once one only open order other our"
    " out over own page paper part pass pattern people person picture piece place plain plan plant play point port"
    " press problem product pull question quick rain ran read ready real red rest right river road rock room round"
    " rule run said same saw say school science sea second see seem sentence serve set several shape ship short"
    " should show side simple since sing six size sleep slow small snow some song soon sound south space special"
    " spell stand star start state stay step still stop story street strong study such sun sure surface table take"
    " talk teach tell ten test than that their them then there these thing think this those thought three through"
    " time together told took top toward town travel tree true turn two under unit until use usual very voice"
    " vowel wait walk want war warm watch water wave way week weight well went were west what wheel when where"
    " which while white whole wind winter with wonder wood word work world would write year young your"
)


class TextTokenizer(Protocol):
    """Text to ids and back.  `name` says where counts came from; `special` adds the model's own markers (BOS)."""

    name: str
    local: bool

    def encode(self, text: str, *, special: bool) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class LocalTokenizer:
    """A tokenizer.json read by the `tokenizers` library."""

    local = True

    def __init__(self, path: Path, name: str) -> None:
        from tokenizers import Tokenizer

        self.name = name
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise ConfigError(f"tokenizer: {path} is not a tokenizer.json that can be read ({error})") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def encode(self, text: str, *, special: bool) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=special).ids)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))


class ServerTokenizer:
    """The target's own /tokenize and /detokenize, as vLLM and headrace serve offer them.  One kept connection."""

    local = False

    def __init__(self, base_url: str, model: str, headers: Mapping[str, str], *, timeout_s: float = 30.0) -> None:
        self._peer = Peer(base_url, headers, timeout_s=timeout_s)
        self._model = model
        self.name = f"{base_url} /tokenize"

    def encode(self, text: str, *, special: bool) -> list[int]:
        answer = self._post("/tokenize", {"model": self._model, "prompt": text, "add_special_tokens": special})
        return [int(token) for token in answer["tokens"]]

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._post("/detokenize", {"model": self._model, "tokens": list(ids)})["prompt"])

    def _post(self, path: str, payload: dict[str, Any]) -> dict[str, Any]:
        try:
            status, data = self._peer.post(path, json.dumps(payload).encode())
        except OSError as error:
            raise ConfigError(f"tokenizer: the server's {path} does not answer ({error})") from None
        if status != 200:
            raise ConfigError(f"tokenizer: the server's {path} answered {status}: {data[:200]!r}")
        try:
            answer = json.loads(data)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict) or not ({"tokens", "prompt"} & answer.keys()):
            raise ConfigError(f"tokenizer: the server's {path} answered something else than tokens: {data[:200]!r}")
        return answer


def open_tokenizer(
    tokenizer: str | None,
    *,
    base_url: str,
    model: str,
    served_name: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> TextTokenizer:
    """The tokenizer that counts this run's prompts: the one named, else the model's directory, else the server's.

    Raises ConfigError that says what was tried when there is none.
    """
    if tokenizer is not None:
        path = _tokenizer_file(tokenizer)
        if path is None:
            raise ConfigError(
                f"tokenizer: {tokenizer} is neither a tokenizer.json nor a directory that has one"
                " (leave --tokenizer out to use the server's /tokenize)"
            )
        return LocalTokenizer(path, tokenizer)
    path = _tokenizer_file(model)
    if path is not None:
        return LocalTokenizer(path, model)
    remote = ServerTokenizer(base_url, served_name or model, headers or {})
    try:
        remote.encode("tokens", special=False)
    except ConfigError as error:
        raise ConfigError(
            "a tokenizer is needed to make and count prompts: give --tokenizer a tokenizer.json or a model directory;"
            f" the server's own is no way out ({error})"
        ) from None
    return remote


def _tokenizer_file(name: str) -> Path | None:
    path = Path(name).expanduser()
    if path.is_dir():
        path = path / "tokenizer.json"
    return path if path.is_file() and path.suffix == ".json" else None


class PromptMaker:
    """Synthetic prompts of a wanted number of tokens.  The same tokenizer and seed give the same prompts."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        # A model's own markers (BOS) may be added whether wanted or not; they do not belong inside a prompt.
        markers = set(tokenizer.encode("a", special=True)) - set(tokenizer.encode("a", special=False))
        self._pool = sorted(set(tokenizer.encode(_WORDS, special=False)) - markers)
        if not self._pool:
            raise ConfigError(f"tokenizer: {tokenizer.name} makes no tokens of English words")

    def ids(self, rng: random.Random, length: int) -> tuple[int, ...]:
        """Exactly `length` token ids."""
        return tuple(rng.choices(self._pool, k=length))

    def text(self, rng: random.Random, length: int) -> tuple[str, int]:
        """A text and its token count (without the model's own markers), which is `length` where that can be had.

        Decoding and encoding again may merge tokens, so the text is corrected a few times; the count returned is
        that of the text returned, whatever came of it.
        """
        text = self._tokenizer.decode(self.ids(rng, length))
        ids = self._tokenizer.encode(text, special=False)
        for _ in range(8):
            if len(ids) == length:
                break
            if len(ids) > length:
                text = self._tokenizer.decode(ids[:length])
            else:
                text += self._tokenizer.decode(self.ids(rng, length - len(ids)))
            ids = self._tokenizer.encode(text, special=False)
        return text, len(ids)
