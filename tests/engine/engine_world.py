"""A small world for engine tests: letters for tokens, a model that follows a script, a gate that holds a step."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from headrace.core.batch import Batch, StepResult
from headrace.core.request import Request, SamplingParams
from headrace.engine.config import EngineConfig
from headrace.engine.detokenizer import Detokenizer
from headrace.engine.outputs import TokenLogprob
from headrace.engine.verify import Row, num_right, rows_of

VOCABULARY = 128
END = 0

CONFIG = EngineConfig(
    model="scripted",
    served_model_names=("scripted",),
    tokenizer="",
    dtype="float32",
    load_format="dummy",
    seed=0,
    max_model_len=256,
    max_num_batched_tokens=64,
    max_num_seqs=8,
    block_size=4,
    num_kv_blocks=128,
    enable_chunked_prefill=True,
    scheduler_version="v1",
    scheduling_policy="fcfs",
    enable_prefix_caching=False,
    long_prefill_token_threshold=0,
    num_threads=1,
    generation_config="vllm",
    chat_template=None,
    model_path=None,
)


def config(**changes: object) -> EngineConfig:
    return replace(CONFIG, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True)
class ScriptedOutput:
    result: StepResult
    logprobs: Mapping[str, tuple[TokenLogprob, ...]] = field(default_factory=dict)
    prompt_logprobs: Mapping[str, tuple[TokenLogprob, ...]] = field(default_factory=dict)


class ScriptedRunner:
    """Continues every text with the alphabet.

    After `hold()` each step waits inside the model until `allow()` or `release()`; `entered` counts steps begun.
    """

    def __init__(self, next_token: Callable[[Row], int] | None = None) -> None:
        self.next_token = next_token or (lambda sequence: ord("a") + sequence.num_output_tokens % 26)
        self.before: Callable[[Batch], None] = lambda batch: None
        self.failed: dict[str, str] = {}
        self.entered = threading.Semaphore(0)
        self._permits = threading.Semaphore(0)
        self._held = False

    def hold(self) -> None:
        self._held = True

    def allow(self) -> None:
        """Let one held step end."""
        self._permits.release()

    def release(self) -> None:
        """Let this step and all later ones pass."""
        self._held = False
        self._permits.release()

    def run(self, batch: Batch) -> ScriptedOutput:
        self.entered.release()
        if self._held:
            assert self._permits.acquire(timeout=30), "a test forgot to release its step"
        self.before(batch)
        sampling = [chunk for chunk in batch.chunks if chunk.samples]
        ids = {chunk.sequence.request_id for chunk in batch.chunks}
        failed = {request_id: reason for request_id, reason in self.failed.items() if request_id in ids}
        tokens, accepted, logprobs = [], {}, {}
        for chunk in sampling:
            name = chunk.sequence.request_id
            chosen = [self.next_token(row) for row in rows_of(chunk)]
            accepted[name] = num_right(chunk.drafts, chosen)
            tokens.append(chosen[accepted[name]])
            if chunk.sequence.request.params.logprobs is not None:
                new = chosen[: accepted[name] + 1]
                logprobs[name] = tuple(TokenLogprob(token, -0.5, 1, ((token, -0.5),)) for token in new)
        return ScriptedOutput(StepResult(tuple(tokens), failed, accepted), logprobs)


class LetterTokenizer:
    """Ids are code points; 0 ends a text."""

    vocab_size = VOCABULARY
    eos_token_ids = frozenset({END})

    def detokenizer(self, params: SamplingParams, prompt_token_ids: Sequence[int]) -> Detokenizer:
        return Detokenizer(
            lambda ids: "".join(map(chr, ids)),
            context=prompt_token_ids,
            skipped=frozenset({END}),
            stop=params.stop,
            include_stop=params.include_stop_str_in_output,
            min_tokens=params.min_tokens,
        )


def request(request_id: str = "r", prompt: str = "hello", **params: object) -> Request:
    return Request(
        request_id,
        tuple(map(ord, prompt)),
        SamplingParams(**{"max_tokens": 5, **params}),  # type: ignore[arg-type]
        frozenset({END}),
    )
