"""Samples: what each request says and how long its answer should be, the same for every run with the same seed."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from headrace.errors import ConfigError
from headrace.lab.workload.conversation import MAX_PROMPT, MAX_TOTAL, MIN_TOKENS, conversation_lengths
from headrace.lab.workload.spec import WorkloadSpec
from headrace.lab.workload.tokens import PromptMaker, TextTokenizer


@dataclass(frozen=True, slots=True)
class Sample:
    """One request's content.

    prompt         text, or token ids (completions only)
    prompt_tokens  as counted by the client's tokenizer; a chat template adds its own on the server
    max_tokens     length of the answer asked for
    """

    index: int
    prompt: str | tuple[int, ...]
    prompt_tokens: int
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Workload:
    """The samples of a run, in sending order, and the warm-up prompts that are never measured.

    tokenizer            where the counts come from
    unique_prompt_ratio  below 1 when a file had too few conversations and some were drawn again: those hit a prefix
                         cache that real traffic would not
    """

    samples: tuple[Sample, ...]
    warmup: tuple[Sample, ...]
    tokenizer: str
    unique_prompt_ratio: float

    def digest(self) -> str:
        """SHA-256 of what is sent: equal for two runs that sent the same prompts and lengths in the same order."""
        digest = hashlib.sha256()
        for sample in self.samples:
            digest.update(json.dumps([sample.prompt, sample.max_tokens]).encode())
        return digest.hexdigest()


def build_workload(spec: WorkloadSpec, tokenizer: TextTokenizer) -> Workload:
    """Make or load the samples that `spec` declares.  Raises ConfigError when the file cannot give them."""
    if spec.dataset_name == "sharegpt":
        samples = _sharegpt(spec, tokenizer)
    else:
        samples = _synthetic(
            spec, spec_lengths(spec), tokenizer, salt="measured", prefix_tokens=shared_prefix_tokens(spec)
        )
    return Workload(
        samples=tuple(samples),
        warmup=_warmup(spec, samples, tokenizer),
        tokenizer=tokenizer.name,
        unique_prompt_ratio=len({s.prompt for s in samples}) / len(samples),
    )


def spec_lengths(spec: WorkloadSpec) -> list[tuple[int, int]]:
    """(prompt tokens, answer tokens) of each request, without a shared prefix; needs no tokenizer.

    Raises ConfigError for a dataset of real text.
    """
    if spec.dataset_name == "sharegpt":
        raise ConfigError("the dataset sharegpt is real text: its lengths are known only to a tokenizer")
    return _conversation(spec) if spec.dataset_name == "conversation" else _random(spec)


def shared_prefix_tokens(spec: WorkloadSpec) -> int:
    """Tokens that all prompts of the dataset random begin with."""
    return _scaled(spec.random_prefix_len, spec.scale) if spec.random_prefix_len else 0


def _scaled(length: int, scale: float) -> int:
    return max(MIN_TOKENS, round(length * scale))


def _conversation(spec: WorkloadSpec) -> list[tuple[int, int]]:
    pairs = conversation_lengths(spec.num_prompts, spec.seed)
    return [(_scaled(p, spec.scale), _scaled(o, spec.scale)) for p, o in pairs]


def _random(spec: WorkloadSpec) -> list[tuple[int, int]]:
    """Uniform lengths in [len * (1 - ratio), len * (1 + ratio)], as vLLM draws them, then scaled."""
    rng = random.Random(f"lengths {spec.seed}")

    def draw(length: int) -> int:
        spread = int(length * spec.random_range_ratio)
        drawn = rng.randint(max(1, length - spread), length + spread)
        return drawn if spec.scale == 1.0 else _scaled(drawn, spec.scale)

    return [(draw(spec.random_input_len), draw(spec.random_output_len)) for _ in range(spec.num_prompts)]


def _synthetic(
    spec: WorkloadSpec,
    lengths: list[tuple[int, int]],
    tokenizer: TextTokenizer,
    *,
    salt: str,
    prefix_tokens: int = 0,
) -> list[Sample]:
    """Prompts of token ids for completions (exact), of text for chat (exact where the tokenizer allows).

    All begin with the same `prefix_tokens` tokens, which come on top of the lengths.
    """
    maker = PromptMaker(tokenizer)
    shared = random.Random(f"prefix {spec.seed}")
    prefix_ids = maker.ids(shared, prefix_tokens)
    prefix_text = maker.text(shared, prefix_tokens)[0] if prefix_tokens and spec.endpoint == "chat" else ""
    samples = []
    for index, (prompt_tokens, max_tokens) in enumerate(lengths):
        rng = random.Random(f"{salt} {spec.seed} {index}")
        if spec.endpoint == "chat":
            text, count = maker.text(rng, prompt_tokens)
            if prefix_text:
                text = f"{prefix_text} {text}"
                count = len(tokenizer.encode(text, special=False))
            samples.append(Sample(index, text, count, max_tokens))
        else:
            ids = prefix_ids + maker.ids(rng, prompt_tokens)
            samples.append(Sample(index, ids, len(ids), max_tokens))
    return samples


def _warmup(spec: WorkloadSpec, samples: list[Sample], tokenizer: TextTokenizer) -> tuple[Sample, ...]:
    """Salted prompts with the lengths of the first samples: a warm-up must not fill the prefix cache for the run."""
    if spec.warmup_requests == 0:
        return ()
    some = [samples[i % len(samples)] for i in range(spec.warmup_requests)]
    return tuple(_synthetic(spec, [(s.prompt_tokens, s.max_tokens) for s in some], tokenizer, salt="warm-up"))


def _sharegpt(spec: WorkloadSpec, tokenizer: TextTokenizer) -> list[Sample]:
    """vLLM's ShareGPT selection: shuffle, first two turns, its length filter, drawn again when too few remain."""
    path = Path(str(spec.dataset_path))
    conversations = [turns for entry in _read_conversations(path) if len(turns := _turns(entry)) >= 2]
    random.Random(spec.seed).shuffle(conversations)
    samples: list[Sample] = []
    for turns in conversations:
        if len(samples) == spec.num_prompts:
            break
        prompt, answer = turns[0], turns[1]
        prompt_tokens = len(tokenizer.encode(prompt, special=True))
        forced = spec.sharegpt_output_len
        output_tokens = len(tokenizer.encode(answer, special=True)) if forced is None else forced
        if _fits(prompt_tokens, output_tokens, forced=forced is not None):
            samples.append(Sample(len(samples), prompt, prompt_tokens, output_tokens))
    if not samples:
        raise ConfigError(
            f"{path} has no usable conversation: of {len(conversations)} with two turns none has a prompt of"
            f" {MIN_TOKENS} to {MAX_PROMPT} tokens, an answer of at least {MIN_TOKENS} and {MAX_TOTAL} at most together"
        )
    rng = random.Random(spec.seed)
    unique = list(samples)
    while len(samples) < spec.num_prompts:
        samples.append(replace(rng.choice(unique), index=len(samples)))
    return samples


def _fits(prompt_tokens: int, output_tokens: int, *, forced: bool) -> bool:
    long_enough = prompt_tokens >= MIN_TOKENS and (forced or output_tokens >= MIN_TOKENS)
    return long_enough and prompt_tokens <= MAX_PROMPT and prompt_tokens + output_tokens <= MAX_TOTAL


def _read_conversations(path: Path) -> list[Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"the dataset {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"the dataset {path} is not JSON: {error}") from None
    if not isinstance(data, list):
        raise ConfigError(f"the dataset {path} is not in the ShareGPT layout: a list of objects with `conversations`")
    return data


def _turns(entry: Any) -> list[str]:
    """Texts of the first two turns; fewer when the entry has another form."""
    turns = entry.get("conversations", entry.get("conversation")) if isinstance(entry, dict) else None
    if not isinstance(turns, list):
        return []
    texts = [turn.get("value") if isinstance(turn, dict) else None for turn in turns[:2]]
    return [text for text in texts if isinstance(text, str)]
