"""The scheduler's state for one request, and its phases."""

from __future__ import annotations

from enum import Enum

from headrace.core.request import FinishReason, Request


class Phase(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Sequence:
    """A request under way.  The scheduler owns and mutates it; everyone else reads.

    token_ids       prompt followed by the sampled tokens (only the output part grows)
    computed        tokens whose K/V are computed or already planned: advances in `schedule`, not in `commit`,
                    which is what makes planning one step ahead possible
    block_table     physical KV block ids, in order of position; position p lives in block_table[p // block_size]
    num_cached_tokens  prompt tokens served from the prefix cache at the first admission (usage reports it)
    """

    __slots__ = (
        "block_table",
        "computed",
        "finish_reason",
        "num_cached_tokens",
        "num_preemptions",
        "num_prompt_tokens",
        "phase",
        "request",
        "stop_reason",
        "token_ids",
    )

    def __init__(self, request: Request) -> None:
        self.request = request
        self.token_ids: list[int] = list(request.prompt_token_ids)
        self.num_prompt_tokens = len(self.token_ids)
        self.computed = 0
        self.block_table: list[int] = []
        self.phase = Phase.WAITING
        self.num_cached_tokens = 0
        self.num_preemptions = 0
        self.finish_reason: FinishReason | None = None
        self.stop_reason: int | str | None = None

    @property
    def request_id(self) -> str:
        return self.request.request_id

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    def __len__(self) -> int:
        return len(self.token_ids)
