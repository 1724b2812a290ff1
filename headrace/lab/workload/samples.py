"""Samples: what each request says and how long its answer should be, the same for every run with the same seed."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from headrace.errors import ConfigError
from headrace.lab.workload.conversation import MAX_PROMPT, MAX_TOTAL, MIN_TOKENS, conversation_lengths
from headrace.lab.workload.datasets import custom, hub, sessions, shared_prefix, sonnet
from headrace.lab.workload.spec import FIXED_LENGTHS, WorkloadSpec
from headrace.lab.workload.tokens import PromptMaker, TextTokenizer
from headrace.lab.workload.traces import MOONCAKE_BLOCK, Arrival, read_trace, replay_schedule


@dataclass(frozen=True, slots=True)
class Sample:
    """One request's content.

    prompt         text, or token ids (completions only)
    prompt_tokens  as counted by the client's tokenizer; a chat template adds its own on the server
    max_tokens     length of the answer asked for
    after          the earlier turn of its session, sent `think_s` after that one's answer; None for a first one
    """

    index: int
    prompt: str | tuple[int, ...]
    prompt_tokens: int
    max_tokens: int
    after: int | None = None
    think_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Workload:
    """The samples of a run, in sending order, and the warm-up prompts that are never measured.

    tokenizer            where the counts come from
    arrivals_ns          when each is due, where the dataset is a trace that is replayed with its own times
    unique_prompt_ratio  below 1 when a file had too few conversations and some were drawn again: those hit a prefix
                         cache that real traffic would not
    """

    samples: tuple[Sample, ...]
    warmup: tuple[Sample, ...]
    tokenizer: str
    unique_prompt_ratio: float
    arrivals_ns: tuple[int, ...] | None = None

    def digest(self) -> str:
        """SHA-256 of what is sent: equal for two runs that sent the same prompts and lengths in the same order."""
        digest = hashlib.sha256()
        for sample in self.samples:
            digest.update(json.dumps([sample.prompt, sample.max_tokens]).encode())
        return digest.hexdigest()


def build_workload(spec: WorkloadSpec, tokenizer: TextTokenizer) -> Workload:
    """Make or load the samples that `spec` declares.  Raises ConfigError when the file cannot give them."""
    arrivals_ns = None
    if spec.dataset_name in _DRAWN:
        drawn = _DRAWN[spec.dataset_name](spec, tokenizer)
        samples = [Sample(i, one.prompt, one.prompt_tokens, one.max_tokens) for i, one in enumerate(drawn)]
    elif spec.dataset_name == "sharegpt":
        samples = _sharegpt(spec, tokenizer)
    elif spec.dataset_name == "sessions":
        samples = _sessions(spec, tokenizer)
    elif spec.dataset_name == "trace":
        arrivals = read_trace(Path(str(spec.dataset_path)), limit=spec.num_prompts)
        samples = _recorded(spec, arrivals, tokenizer)
        if spec.replayed and spec.arrivals_path is None:
            arrivals_ns = replay_schedule(arrivals, time_scale=spec.time_scale)
    else:
        samples = _synthetic(
            spec, spec_lengths(spec), tokenizer, salt="measured", prefix_tokens=shared_prefix_tokens(spec)
        )
    if spec.arrivals_path is not None:
        recorded = read_trace(Path(spec.arrivals_path), limit=len(samples))
        if len(recorded) < sum(sample.after is None for sample in samples):
            raise ConfigError(
                f"arrivals_path {spec.arrivals_path} holds {len(recorded)} arrivals, fewer than num_prompts"
            )
        arrivals_ns = replay_schedule(recorded, time_scale=spec.time_scale)
    return Workload(
        samples=tuple(samples),
        warmup=_warmup(spec, samples, tokenizer),
        tokenizer=tokenizer.name,
        unique_prompt_ratio=len({s.prompt for s in samples}) / len(samples),
        arrivals_ns=arrivals_ns,
    )


def spec_lengths(spec: WorkloadSpec) -> list[tuple[int, int]]:
    """(prompt tokens, answer tokens) of each request, without a shared prefix; needs no tokenizer.

    Raises ConfigError for a dataset of real text.
    """
    if spec.dataset_name == "trace":
        arrivals = read_trace(Path(str(spec.dataset_path)), limit=spec.num_prompts)
        return [(_scaled(one.input_tokens, spec.scale), _scaled(one.output_tokens, spec.scale)) for one in arrivals]
    if spec.dataset_name == "shared-prefix":
        return [(spec.prefix_len + spec.suffix_len, spec.prefix_output_len)] * spec.num_prompts
    if spec.dataset_name in FIXED_LENGTHS:
        raise ConfigError(f"the dataset {spec.dataset_name} is real text: its lengths are known only to a tokenizer")
    return _conversation(spec) if spec.dataset_name == "conversation" else _random(spec)


def shared_prefix_tokens(spec: WorkloadSpec) -> int:
    """Tokens that all prompts of the dataset random begin with."""
    return _scaled(spec.random_prefix_len, spec.scale) if spec.random_prefix_len else 0


_DRAWN = {"sonnet": sonnet, "shared-prefix": shared_prefix, "custom": custom, "hf": hub}


def _sessions(spec: WorkloadSpec, tokenizer: TextTokenizer) -> list[Sample]:
    samples: list[Sample] = []
    for session in sessions(spec, tokenizer):
        before = None
        for turn, think_s in zip(session.turns, (0.0, *session.think_s), strict=True):
            index = len(samples)
            samples.append(Sample(index, turn.prompt, turn.prompt_tokens, turn.max_tokens, before, think_s))
            before = index
    return samples


def _recorded(spec: WorkloadSpec, arrivals: Sequence[Arrival], tokenizer: TextTokenizer) -> list[Sample]:
    """A trace's own prompts, or synthetic ones of its lengths; blocks with the same id hold the same tokens."""
    maker = PromptMaker(tokenizer)
    samples = []
    for index, arrival in enumerate(arrivals):
        output = _scaled(max(arrival.output_tokens, 1), spec.scale)
        if arrival.prompt is not None:
            count = len(tokenizer.encode(arrival.prompt, special=True))
            samples.append(Sample(index, arrival.prompt, count, output))
            continue
        length = _scaled(max(arrival.input_tokens, 1), spec.scale)
        block = max(1, round(MOONCAKE_BLOCK * spec.scale))
        ids: list[int] = []
        for number in arrival.blocks:
            ids += maker.ids(random.Random(f"block {spec.seed} {number}"), block)
        if len(ids) < length:
            ids += maker.ids(random.Random(f"trace {spec.seed} {index}"), length - len(ids))
        prompt: str | tuple[int, ...] = tuple(ids[:length])
        if spec.endpoint == "chat":
            prompt = tokenizer.decode(ids[:length])
        samples.append(Sample(index, prompt, length, output))
    return samples


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
