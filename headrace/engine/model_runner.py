"""Batch -> tensors -> one forward pass -> logits of the sampled rows -> tokens.  Tensors begin and end here."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from headrace.core.batch import Batch, Chunk, StepResult
from headrace.engine import kernels
from headrace.engine.attention.native import supports
from headrace.engine.config import EngineConfig
from headrace.engine.forward import Forward, NativeForward, TorchForward
from headrace.engine.kv_cache import DTYPES, KV_DTYPES, KVCache
from headrace.engine.masks import forget_drafts, state_of
from headrace.engine.models.decoder import Decoder
from headrace.engine.models.shape import read_model_shape
from headrace.engine.outputs import TokenLogprob
from headrace.engine.prompt_logprobs import collect, wants_prompt
from headrace.engine.quant.loader import Loader
from headrace.engine.sampler import Sampled, sample
from headrace.engine.verify import Row, num_right, rows_of
from headrace.engine.weights import open_weights
from headrace.errors import ConfigError


@dataclass(frozen=True, slots=True)
class RunnerOutput:
    """What a step produced; `logprobs` of each new token by request id, for requests that asked.

    `prompt_logprobs` has all of a prompt's tokens but the first, in the step that samples the first output token.
    """

    result: StepResult
    logprobs: Mapping[str, tuple[TokenLogprob, ...]] = field(default_factory=dict)
    prompt_logprobs: Mapping[str, tuple[TokenLogprob, ...]] = field(default_factory=dict)


class ModelRunner:
    """The model, its KV cache, and `run`.

    Loading raises ConfigError with the name of what is missing or not supported.  Use it from one thread at a time.
    """

    def __init__(self, config: EngineConfig) -> None:
        if config.model_path is None:
            raise ConfigError("model_path is not resolved; give the directory of a model")
        self.config = config
        self.shape = read_model_shape(config.model_path)
        self._thread = -1
        self._native = kernels.native()
        self._use_threads()
        dtype = DTYPES[config.dtype]
        source, layout = open_weights(config.model_path, self.shape, dtype, config.load_format, config.seed)
        with torch.inference_mode(), source:
            loader = Loader(
                source,
                layout,
                self.shape.quantization,
                dtype,
                int4=config.int4,
                to_int8=config.to_int8,
                native=self._native,
            )
            decoder = Decoder(self.shape, loader)
            is_native = supports(config.block_size, self.shape.head_dim)
            kv_dtype = KV_DTYPES[config.kv_cache_dtype]
            self._cache = KVCache(self.shape, config.num_kv_blocks, config.block_size, kv_dtype, is_native=is_native)
            forward = NativeForward if is_native else TorchForward
            self._forward: Forward = forward(decoder, self._cache, config)

    def memory_bytes(self) -> dict[str, int]:
        """Bytes held: "weights" (rotary tables and the packed copy of a tied head included) and "kv_cache"."""
        return {"weights": self._forward.num_bytes, "kv_cache": self._cache.num_bytes}

    @property
    def step_weight_bytes(self) -> int:
        """Weights that a step reads if it uses all experts: not the embedding, unless the head is the same matrix."""
        return self._forward.step_bytes

    def run(self, batch: Batch) -> RunnerOutput:
        """Compute one batch: prefill and decode together in one forward pass.

        Writes K/V of every chunk and returns a token for every chunk that samples, and how many of its drafts are right
        (wrong ones leave values that nothing reads before they are written again).  A sequence whose values are not
        finite is reported in `failed`, and its blocks are cleaned; the others are not touched by it (but who shares
        what it computes in this very step has no result either: the scheduler lets those start over).
        """
        if not batch.chunks:
            return RunnerOutput(StepResult(()))
        self._use_threads()
        with torch.inference_mode():
            return self._run(batch.chunks)

    def warm_up(self) -> None:
        """Run one step's shapes without touching the cache, so that the first request does not pay for kernels
        that oneDNN builds on first use.  Native kernels are built; all that they do first is take their buffers."""
        self._use_threads()
        most = 256 if self._native is None else 16
        with torch.inference_mode():
            for rows in (1, min(self.config.max_num_batched_tokens, most)):
                self._forward.logits(self._forward.warm_up(rows))

    def _run(self, chunks: tuple[Chunk, ...]) -> RunnerOutput:
        hidden, last_rows = self._forward.run(chunks)
        sampling = [chunk for chunk in chunks if chunk.samples]
        sampled = [row for chunk in sampling for row in rows_of(chunk)]
        # Values that are not finite anywhere in a sequence's past reach its last row: attention multiplies them all.
        failed = self._failures(hidden[last_rows], [chunk.sequence for chunk in chunks], "hidden state")
        # The last row of a chunk that samples, and one more for each of its drafts.
        rows = [
            row
            for last, chunk in zip(last_rows, chunks, strict=True)
            if chunk.samples
            for row in range(last - len(chunk.drafts), last + 1)
        ]
        logits = self._forward.logits(hidden[rows]) if sampled else hidden[:0]
        failed |= self._failures(logits, sampled, "logits")
        spoilt = set(failed)
        if spoilt:
            self._cache.scrub([b for c in chunks if c.sequence.request_id in spoilt for b in c.sequence.block_table])
            logits = logits.nan_to_num(0.0, 0.0, 0.0)
            failed = own_failures(chunks, failed, self.config.block_size)
        for chunk, row in zip(chunks, last_rows, strict=True):
            if wants_prompt(chunk) and chunk.sequence.request_id not in spoilt:
                collect(chunk, hidden[row + 1 - chunk.length : row + 1], self._forward.logits)
        if not sampled:
            return RunnerOutput(StepResult((), failed))
        return self._verified(sampling, sample(logits, sampled, self.config.seed), failed)

    @staticmethod
    def _verified(sampling: list[Chunk], sampled: Sampled, failed: dict[str, str]) -> RunnerOutput:
        """Each chunk's new tokens: its right drafts, and the token behind them."""
        tokens: list[int] = []
        accepted: dict[str, int] = {}
        logprobs: dict[str, tuple[TokenLogprob, ...]] = {}
        prompts: dict[str, tuple[TokenLogprob, ...]] = {}
        first = 0
        for sequence, _, _, _, drafts in sampling:
            count, name, params = 0, sequence.request_id, sequence.request.params
            if first in sampled.failed:
                failed.setdefault(name, sampled.failed[first])
            elif drafts:
                unfit = {row - first for row in sampled.failed}
                count = accepted[name] = num_right(drafts, sampled.tokens[first : first + 1 + len(drafts)], unfit)
                forget_drafts(sequence)
            tokens.append(sampled.tokens[first + count])
            if params.logprobs is not None:
                logprobs[name] = tuple(sampled.logprobs[row] for row in range(first, first + count + 1))
            if params.scores_prompt and not sequence.num_output_tokens:
                prompts[name] = tuple(state_of(sequence).prompt_logprobs)
            first += 1 + len(drafts)
        return RunnerOutput(StepResult(tuple(tokens), failed, accepted), logprobs, prompts)

    @staticmethod
    def _failures(values: Tensor, sequences: Sequence[Row], what: str) -> dict[str, str]:
        # The sum of a row is finite if and only if all of it is (fp32 sums of sane values do not overflow).
        finite = torch.isfinite(values.sum(dim=-1, dtype=torch.float32))
        if bool(finite.all()):
            return {}
        reason = f"the model produced NaN or Inf in its {what}"
        return {each.request_id: reason for each, ok in zip(sequences, finite.tolist(), strict=True) if not ok}

    def _use_threads(self) -> None:
        """Thread counts belong to the calling thread in OpenMP: set them in whichever thread runs the steps.

        Only one pool may be awake: beside native kernels torch computes in the calling thread alone.
        """
        if self._thread != threading.get_ident():
            self._thread = threading.get_ident()
            torch.set_num_threads(self.config.num_threads if self._native is None else 1)
            if self._native is not None:
                self._native.set_num_threads(self.config.num_threads)


def own_failures(chunks: Sequence[Chunk], failed: dict[str, str], block_size: int) -> dict[str, str]:
    """`failed` without those who only read, in this same step, what another failed chunk wrote.

    A prefix that two new requests share is computed once, by the first of them in the batch.  NaN in its chunk reaches
    all rows of it, those of the prefix too (a masked score is NaN + -inf), and through these the second request.
    """
    own: dict[str, str] = {}
    written: set[int] = set()
    for sequence, start, length, *_ in chunks:
        if sequence.request_id in failed:
            if written.isdisjoint(sequence.block_table):
                own[sequence.request_id] = failed[sequence.request_id]
            written.update(sequence.block_table[start // block_size : (start + length - 1) // block_size + 1])
    return own
