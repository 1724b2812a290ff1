"""A scripted engine behind the real protocol, and a real tokenizer made on the spot.

`ScriptedEngine` answers every request with the tokens of its `text`, one token a step.  Steps run freely, or one by one
when the test holds the pace (`engine.hold()`, `engine.release(steps)`): tests wait for events, never for time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tokenizers import Tokenizer as HfTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from headrace.core.request import FinishReason, Request
from headrace.engine.async_engine import EngineStats, FinishedRequest, Observer, Output, TokenLogprob
from headrace.engine.config import EngineConfig
from headrace.errors import InvalidRequest

END = "<|end|>"
CORPUS = ["The quick brown fox jumps over the lazy dog. ", "Water turns the wheel; the wheel turns the stone. "]
ANSWER = "The wheel turns: über 水 🌊, and the quick fox jumps over the stone. " * 8

CONFIG = EngineConfig(
    model="scripted",
    served_model_names=("scripted",),
    tokenizer="scripted",
    dtype="float32",
    load_format="dummy",
    seed=0,
    max_model_len=256,
    max_num_batched_tokens=256,
    max_num_seqs=64,
    block_size=16,
    num_kv_blocks=512,
    enable_chunked_prefill=True,
    scheduler_version="v1",
    scheduling_policy="fcfs",
    enable_prefix_caching=True,
    long_prefill_token_threshold=0,
    num_threads=1,
    generation_config="vllm",
    chat_template=None,
    model_path=None,
)


class ByteBpe:
    """A byte-level BPE trained on two sentences: rare characters take several tokens each."""

    def __init__(self) -> None:
        self._hf = HfTokenizer(models.BPE())
        self._hf.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self._hf.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=400,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=[END, "<|user|>", "<|assistant|>", "<|system|>"],
            show_progress=False,
        )
        self._hf.train_from_iterator(CORPUS * 20, trainer)
        self.vocab_size = self._hf.get_vocab_size()
        self.eos_token_ids = frozenset({self._hf.token_to_id(END)})

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return list(self._hf.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return str(self._hf.decode(list(ids), skip_special_tokens=skip_special_tokens))

    special_tokens: Mapping[str, str] = {}
    read_by_template = frozenset({"tools"})

    def template_reads(self, variable: str) -> bool:
        return variable in self.read_by_template

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        text = "".join(f"<|{message['role']}|>{message['content']}{END}" for message in messages)
        return text + ("<|assistant|>" if add_generation_prompt else "")

    def spellings(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(self.encode(word, False)) for word in words)

    def token_id(self, text: str) -> int | None:
        return self._hf.token_to_id(text)

    def token_text(self, token_id: int) -> str:
        return self.decode([token_id], skip_special_tokens=False)


TOKENIZER = ByteBpe()


@dataclass(slots=True)
class _Live:
    request: Request
    aborted: asyncio.Event = field(default_factory=asyncio.Event)


class ScriptedEngine:
    """Implements `headrace.engine.async_engine.Engine`; one KV block per running sequence."""

    def __init__(
        self,
        text: str = ANSWER,
        *,
        ends: bool = False,
        config: EngineConfig = CONFIG,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        self.config = config
        self.tokenizer = TOKENIZER
        self.sampling_defaults: Mapping[str, Any] = defaults or {}
        self.requests: list[Request] = []
        self.healthy = (True, "")
        self.fail_after: int | None = None  # tokens after which every sequence fails
        self.max_waiting: int | None = None
        self.profiling = False
        self.num_queued_tokens = 0
        self._answer = TOKENIZER.encode(text, False)
        if ends:
            self._answer += sorted(TOKENIZER.eos_token_ids)
        self._live: dict[str, _Live] = {}
        self._observer: Observer | None = None
        self._pace: asyncio.Semaphore | None = None
        self._changed = asyncio.Event()
        self._steps = 0
        self._tokens = [0, 0]

    # --- what a test turns ---

    def hold(self) -> None:
        """From now on a token needs a `release`."""
        self._pace = asyncio.Semaphore(0)

    def release(self, steps: int = 1) -> None:
        assert self._pace is not None
        for _ in range(steps):
            self._pace.release()

    async def until(self, condition: Callable[[EngineStats], bool]) -> EngineStats:
        """Wait until the snapshot satisfies `condition`."""
        while not condition(self.stats()):
            self._changed.clear()
            await self._changed.wait()
        return self.stats()

    # --- the protocol ---

    def set_observer(self, observer: Observer) -> None:
        self._observer = observer

    def submit(self, request: Request) -> AsyncIterator[Output]:
        if self.max_waiting is not None and len(self._live) >= self.max_waiting:
            raise InvalidRequest("the queue is full", code="queue_full")
        self.requests.append(request)
        live = self._live[request.request_id] = _Live(request)
        self._tokens[0] += len(request.prompt_token_ids)
        self._changed.set()
        return self._stream(live)

    def abort(self, request_id: str) -> None:
        live = self._live.get(request_id)
        if live is not None:
            live.aborted.set()
            self._end(live, FinishReason.ABORT, 0)

    def stats(self) -> EngineStats:
        return EngineStats(
            num_running=len(self._live),
            num_waiting=0,
            kv_blocks_total=self.config.num_kv_blocks,
            kv_blocks_free=self.config.num_kv_blocks - len(self._live),
            num_steps=self._steps,
            last_step_end_s=None,
            step_seconds_p99=0.0,
            prompt_tokens=self._tokens[0],
            prompt_tokens_cached=0,
            generation_tokens=self._tokens[1],
            num_preemptions=0,
            prefix_cache_queries=0,
            prefix_cache_hits=0,
        )

    def is_healthy(self) -> tuple[bool, str]:
        return self.healthy

    async def drain(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self.until(lambda stats: stats.num_running == 0)
        except TimeoutError:
            for request_id in list(self._live):
                self.abort(request_id)

    def close(self) -> None: ...

    async def start_profile(self) -> dict[str, Any]:
        if self.profiling:
            raise InvalidRequest("The profiler has been started already.", code="profiler_state")
        self.profiling = True
        return {"trace": "/traces/1"}

    async def reset_prefix_cache(self) -> None:
        if self._live:
            raise InvalidRequest("KV blocks are in use.", code="cache_in_use")

    async def stop_profile(self) -> dict[str, Any]:
        if not self.profiling:
            raise InvalidRequest("There is no profiler.", code="profiler_off")
        self.profiling = False
        return {"trace": "/traces/1", "steps": 3}

    # --- generating ---

    async def _stream(self, live: _Live) -> AsyncIterator[Output]:
        request = live.request
        output = Output(request.request_id, "", (), len(request.prompt_token_ids), 0, 0)
        held: list[int] = []
        try:
            for count, token in enumerate(self._script(request), start=1):
                await self._turn(live)
                if live.aborted.is_set():
                    yield replace(output, finish_reason=FinishReason.ABORT, error="the request was aborted")
                    return
                self._tokens[1] += 1
                held.append(token)
                output = replace(output, num_output_tokens=count, text="", token_ids=(token,), logprobs=None)
                if self.fail_after is not None and count > self.fail_after:
                    self._end(live, FinishReason.ERROR, count)
                    yield replace(output, finish_reason=FinishReason.ERROR, error="the logits are not finite")
                    return
                text = TOKENIZER.decode(held, skip_special_tokens=True)
                reason = self._reason(request, token, count)
                if reason is None and (not text or text.endswith("\ufffd")):
                    yield replace(output, logprobs=self._logprobs(request, [token]))
                    continue
                if reason is not None:
                    self._end(live, reason, count)
                yield replace(output, text=text, finish_reason=reason, logprobs=self._logprobs(request, [token]))
                held = []
                if reason is not None:
                    return
        finally:
            self._end(live, FinishReason.ABORT, output.num_output_tokens)

    async def _turn(self, live: _Live) -> None:
        await asyncio.sleep(0)
        if self._pace is None:
            return
        step = asyncio.create_task(self._pace.acquire())
        stop = asyncio.create_task(live.aborted.wait())
        try:
            await asyncio.wait((step, stop), return_when=asyncio.FIRST_COMPLETED)
        finally:
            step.cancel()
            stop.cancel()

    def _script(self, request: Request) -> list[int]:
        ids = self._answer
        if request.params.seed is not None:  # another seed, another answer
            shift = request.params.seed % len(ids)
            ids = ids[shift:] + ids[:shift]
        return ids * (1 + request.params.max_tokens // len(ids))

    def _reason(self, request: Request, token: int, count: int) -> FinishReason | None:
        if not request.params.ignore_eos and token in request.eos_token_ids:
            return FinishReason.STOP
        return FinishReason.LENGTH if count >= request.params.max_tokens else None

    def _logprobs(self, request: Request, ids: Sequence[int]) -> tuple[TokenLogprob, ...] | None:
        wanted = request.params.logprobs
        if wanted is None:
            return None
        others = [(other, -1.0 - other) for other in range(10, 10 + wanted)]
        return tuple(TokenLogprob(token, -0.25, 1, ((token, -0.25), *others)[:wanted]) for token in ids)

    def _end(self, live: _Live, reason: FinishReason, count: int) -> None:
        if self._live.pop(live.request.request_id, None) is None:
            return
        self._steps += count
        if self._observer is not None:
            prompt = len(live.request.prompt_token_ids)
            reached = (0.5, 1.0, 1.0 + 0.125 * count) if count else (None, None, None)
            self._observer.finished(
                FinishedRequest(reason, prompt, 0, count, live.request.params.max_tokens, 0.0, *reached, finished_s=9.0)
            )
        self._changed.set()
