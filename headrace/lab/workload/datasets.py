"""Datasets beside ShareGPT: sonnet, shared prefixes, one's own JSON lines, the Hugging Face hub's, sessions."""

from __future__ import annotations

import importlib
import json
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.errors import ConfigError
from headrace.lab.workload.spec import WorkloadSpec
from headrace.lab.workload.tokens import PromptMaker, TextTokenizer

Prompt = str | tuple[int, ...]
# Where a row of a dataset has its question and its answer, in the order of looking.
_QUESTIONS = ("prompt", "question", "instruction", "input", "text", "problem", "query", "content", "text_input")
_ANSWERS = ("output", "answer", "response", "completion", "chosen", "canonical_solution")


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a dataset gives for one request, before it has its place in the workload."""

    prompt: Prompt
    prompt_tokens: int
    max_tokens: int


def sonnet(spec: WorkloadSpec, tokenizer: TextTokenizer) -> list[Drawn]:
    """Lines of a poem up to `sonnet_input_len` tokens; all requests begin with the same `sonnet_prefix_len` of them."""
    lines = [line for line in _text(spec.dataset_path).splitlines() if line.strip()]
    if not lines:
        raise ConfigError(f"the dataset {spec.dataset_path} has no lines")
    mean = sum(len(tokenizer.encode(line, special=False)) for line in lines) / len(lines)
    head = "Pick as many lines as you can from these poem lines:\n"
    base = len(tokenizer.encode(head, special=False))
    if spec.sonnet_input_len <= base:
        raise ConfigError(f"sonnet_input_len must be above {base}, the tokens of the instruction")
    shared = lines[: max(0, round((spec.sonnet_prefix_len - base) / mean))]
    rng = random.Random(f"sonnet {spec.seed}")
    more = max(0, round((spec.sonnet_input_len - base) / mean) - len(shared))
    drawn = []
    for _ in range(spec.num_prompts):
        text = head + "\n".join([*shared, *rng.choices(lines, k=more)])
        drawn.append(Drawn(text, len(tokenizer.encode(text, special=False)), spec.sonnet_output_len))
    return drawn


def shared_prefix(spec: WorkloadSpec, tokenizer: TextTokenizer) -> list[Drawn]:
    """`num_prefixes` prefixes, each shared by as many requests, each request with a suffix of its own, shuffled."""
    maker = PromptMaker(tokenizer)
    prefixes = [
        _both(spec, maker, random.Random(f"prefix {spec.seed} {number}"), spec.prefix_len)
        for number in range(spec.num_prefixes)
    ]
    drawn = []
    for index in range(spec.num_prompts):
        prefix = prefixes[index % spec.num_prefixes]
        suffix = _both(spec, maker, random.Random(f"suffix {spec.seed} {index}"), spec.suffix_len)
        if isinstance(prefix, str) or isinstance(suffix, str):
            text = f"{prefix} {suffix}"
            drawn.append(Drawn(text, len(tokenizer.encode(text, special=False)), spec.prefix_output_len))
        else:
            drawn.append(Drawn(prefix + suffix, len(prefix) + len(suffix), spec.prefix_output_len))
    random.Random(f"order {spec.seed}").shuffle(drawn)
    return drawn


def custom(spec: WorkloadSpec, tokenizer: TextTokenizer) -> list[Drawn]:
    """JSON lines, an object each with `prompt` and, where wanted, `output_tokens` (vLLM's `custom` form)."""
    rows = []
    for number, line in enumerate(_text(spec.dataset_path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict) or question(row) is None:
            raise ConfigError(f"the dataset {spec.dataset_path}, line {number}: not an object with a text `prompt`")
        rows.append(row)
    if not rows:
        raise ConfigError(f"the dataset {spec.dataset_path} has no rows")
    random.Random(spec.seed).shuffle(rows)
    return list(_filled(spec, (_row(spec, row, tokenizer) for row in _cycled(rows, spec.num_prompts))))


def hub(spec: WorkloadSpec, tokenizer: TextTokenizer) -> list[Drawn]:
    """Rows of a set of the Hugging Face hub: its question, or the first turn of its conversation.

    Raises ConfigError without the package, without a network, and for rows that have no text.
    """
    try:
        load_dataset = importlib.import_module("datasets").load_dataset
    except ModuleNotFoundError:
        raise ConfigError("dataset_name hf needs the package datasets: pip install 'headrace[datasets]'") from None
    name = str(spec.dataset_path)
    try:
        rows = load_dataset(name, spec.hf_subset, split=spec.hf_split, streaming=True)
        some = [row for row, _ in zip(rows.shuffle(seed=spec.seed), range(4 * spec.num_prompts), strict=False)]
    except Exception as error:  # the package raises what its dozen dependencies raise
        words = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"the dataset {name} could not be loaded from the Hugging Face hub ({type(error).__name__}: {words}); "
            "it needs a network, or a copy in the hub's cache"
        ) from None
    usable = [row for row in some if question(row) is not None]
    if not usable:
        keys = ", ".join(map(str, some[0])) if some else "no rows"
        raise ConfigError(f"the dataset {name} has no text to ask ({keys}); looked for {', '.join(_QUESTIONS)}")
    return list(_filled(spec, (_row(spec, row, tokenizer) for row in _cycled(usable, spec.num_prompts))))


def question(row: Mapping[str, Any]) -> str | None:
    """The text of a row that a user would send; None when there is none."""
    for key in ("conversations", "conversation", "messages"):
        if isinstance(turns := row.get(key), list) and turns:
            first = next((turn for turn in turns if isinstance(turn, dict)), {})
            said = first.get("value", first.get("content"))
            return said if isinstance(said, str) and said.strip() else None
    for key in _QUESTIONS:
        if isinstance(said := row.get(key), str) and said.strip():
            return said
    return None


@dataclass(frozen=True, slots=True)
class DrawnSession:
    """The user's messages of one session, each with the answer length asked for and the pause before it in seconds."""

    turns: tuple[Drawn, ...]
    think_s: tuple[float, ...]


def sessions(spec: WorkloadSpec, tokenizer: TextTokenizer) -> list[DrawnSession]:
    """Sessions of `session_turns` turns, as many as give `num_prompts` requests; users think between turns for an
    exponential time with the mean `session_think_s`."""
    maker = PromptMaker(tokenizer)
    recorded = _recorded_turns(spec) if spec.dataset_path else None
    found: list[DrawnSession] = []
    left = spec.num_prompts
    number = 0
    while left > 0:
        rng = random.Random(f"session {spec.seed} {number}")
        count = min(left, spec.session_turns)
        messages = recorded[number % len(recorded)][:count] if recorded else ()
        turns = []
        for place in range(len(messages) or count):
            if messages:
                text = messages[place]
                tokens = len(tokenizer.encode(text, special=False))
            else:
                text, tokens = maker.text(rng, spec.random_input_len)
            turns.append(Drawn(text, tokens, spec.random_output_len))
        think = [rng.expovariate(1 / spec.session_think_s) if spec.session_think_s else 0.0 for _ in turns[1:]]
        found.append(DrawnSession(tuple(turns), tuple(think)))
        left -= len(turns)
        number += 1
    return found


def _recorded_turns(spec: WorkloadSpec) -> list[tuple[str, ...]]:
    """The user's turns of each conversation of a file in the ShareGPT layout."""
    try:
        data = json.loads(_text(spec.dataset_path))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the dataset {spec.dataset_path} is not JSON: {error}") from None
    found = []
    for entry in data if isinstance(data, list) else []:
        turns = entry.get("conversations") if isinstance(entry, dict) else None
        said = [turn.get("value") for turn in (turns or [])[::2] if isinstance(turn, dict)]
        if texts := tuple(text for text in said if isinstance(text, str) and text.strip()):
            found.append(texts)
    if not found:
        raise ConfigError(f"the dataset {spec.dataset_path} has no conversation in the ShareGPT layout")
    random.Random(spec.seed).shuffle(found)
    return found


def _both(spec: WorkloadSpec, maker: PromptMaker, rng: random.Random, length: int) -> Prompt:
    return maker.text(rng, length)[0] if spec.endpoint == "chat" else maker.ids(rng, length)


def _row(spec: WorkloadSpec, row: Mapping[str, Any], tokenizer: TextTokenizer) -> Drawn:
    text = question(row) or ""
    asked = row.get("output_tokens")
    if isinstance(asked, int) and not isinstance(asked, bool) and asked > 0:
        output = asked
    elif spec.custom_output_len is not None:
        output = spec.custom_output_len
    else:
        answer = next((row[key] for key in _ANSWERS if isinstance(row.get(key), str) and row[key].strip()), None)
        output = len(tokenizer.encode(answer, special=False)) if answer else 256
    return Drawn(text, len(tokenizer.encode(text, special=True)), max(output, 1))


def _filled(spec: WorkloadSpec, drawn: Iterable[Drawn]) -> Iterator[Drawn]:
    for one in drawn:
        if not one.prompt_tokens:
            raise ConfigError(f"the dataset {spec.dataset_path} has an empty prompt")
        yield one


def _cycled(rows: list[Any], count: int) -> list[Any]:
    """`count` rows, from the start again when there are too few."""
    return [rows[index % len(rows)] for index in range(count)]


def _text(path: str | None) -> str:
    try:
        return Path(str(path)).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"the dataset {path} cannot be read: {reason}") from None
