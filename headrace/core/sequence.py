"""The scheduler's state for one request, and its phases."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from headrace.core.request import FinishReason, Request

if TYPE_CHECKING:
    from headrace.core.speculation import NgramIndex

BlockKey = tuple[bytes, bytes]
"""Identity of a full block: (digest of everything before it, its own token ids as bytes); see `blocks`."""


class Phase(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Sequence:
    """A request under way.  The scheduler owns and mutates it; everyone else reads.

    token_ids         prompt followed by the sampled tokens (only the output part grows)
    num_tokens        their number
    computed          tokens whose K/V are computed or already planned: advances in `schedule`, not in `commit`,
                      which is what makes planning one step ahead possible (over drafts only in `commit`)
    prefill_length    `num_tokens` at the latest admission: chunks that start below it are prefill, also when a
                      preempted sequence recomputes its own output
    block_table       physical KV block ids, in order of position; position p lives in block_table[p // block_size]
    num_cached_tokens tokens served from the prefix cache at the first admission (usage reports it)
    num_preemptions   how often it lost its blocks
    order             running number of the request in its scheduler: who came first
    sampling_state    what the engine's sampler keeps with the sequence; the core never looks at it
    ngrams            what speculation knows of its tokens, from its first decode on
    """

    # Prompts stay what the caller passed (a `range` in simulations): nothing is copied until someone reads
    # `token_ids`, so that adding a request costs the same for 10 and for 100,000 tokens.
    __slots__ = (
        "_token_ids",
        "block_keys",
        "block_table",
        "computed",
        "end_ids",
        "finish_reason",
        "length_limit",
        "min_length",
        "ngrams",
        "num_cached_tokens",
        "num_preemptions",
        "num_prompt_tokens",
        "num_published",
        "num_tokens",
        "order",
        "output_token_ids",
        "phase",
        "prefill_length",
        "repetition",
        "request",
        "request_id",
        "sampling_state",
        "stop_reason",
    )

    def __init__(self, request: Request, *, max_model_len: int = 1 << 62, order: int = 0) -> None:
        params = request.params
        prompt = len(request.prompt_token_ids)
        self.request = request
        self.request_id = request.request_id
        self.order = order
        self.num_prompt_tokens = self.num_tokens = self.prefill_length = prompt
        self.output_token_ids: list[int] = []
        self._token_ids: list[int] | None = None
        self.computed = 0
        self.phase = Phase.WAITING
        self.num_cached_tokens = 0
        self.num_preemptions = 0
        self.finish_reason: FinishReason | None = None
        self.stop_reason: int | str | None = None
        self.sampling_state: object | None = None
        self.ngrams: NgramIndex | None = None
        self.block_table: list[int] = []
        # Owned by the block manager: keys known so far, and how many leading blocks are findable by them.
        self.block_keys: list[BlockKey] = []
        self.num_published = 0
        # The stop rules, resolved once instead of once per token.
        self.length_limit = min(prompt + params.max_tokens, max_model_len)
        self.min_length = prompt + params.min_tokens
        self.repetition = params.repetition_detection
        self.end_ids = frozenset() if params.ignore_eos else request.eos_token_ids
        if params.stop_token_ids:
            self.end_ids = self.end_ids.union(params.stop_token_ids)

    @property
    def token_ids(self) -> list[int]:
        """Prompt and output ids; the same list every time, which the caller must not change."""
        if self._token_ids is None:
            self._token_ids = list(self.request.prompt_token_ids)
        missing = self.num_tokens - len(self._token_ids)
        if missing:
            self._token_ids += self.output_token_ids[-missing:]
        return self._token_ids

    def tokens_between(self, start: int, stop: int) -> list[int]:
        """Token ids at positions [start, stop), without building the whole list."""
        prompt = self.num_prompt_tokens
        if start >= prompt:
            return self.output_token_ids[start - prompt : stop - prompt]
        head = list(self.request.prompt_token_ids[start:stop])
        return head if stop <= prompt else head + self.output_token_ids[: stop - prompt]

    @property
    def num_output_tokens(self) -> int:
        return len(self.output_token_ids)

    def __len__(self) -> int:
        return self.num_tokens

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"Sequence({self.request_id!r}, {self.phase.value}, {self.computed}/{self.num_tokens})"
