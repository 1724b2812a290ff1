"""A replica as a fluid: when answers come back, to within a few per cent and in a few events a request.

A router sees which requests have come back, so what it does depends on what its replicas do.  Stepping hundreds of
schedulers only to count requests would take minutes; this keeps each replica's load: sequences that decode advance by
one token a step, a prompt takes what is left of the steps' budget, and a step takes what the cost model says.
"""

from __future__ import annotations

import heapq
from collections import deque

from headrace.lab.sim.cost import StepShape
from headrace.lab.sim.server import Server


class FluidReplica:
    """Requests are handed over in time order; times in seconds.

    requests, work   in flight now: how many, and their tokens as the router weighs them
    """

    def __init__(self, server: Server) -> None:
        config = server.config
        self._cost, self._budget, self._seats = server.cost, config.max_num_batched_tokens, config.max_num_seqs
        self._room = config.num_blocks * config.block_size
        self.requests = self.work = 0
        self._now = 0.0
        self._token = 0.0  # steps so far: a sequence that starts to decode at step t with o tokens ends at t + o
        self._context = 0.0
        self._held = 0
        self._decoding: list[tuple[float, int, int]] = []  # (last token, tokens held, weight)
        self._waiting: deque[tuple[int, int, int]] = deque()  # (prompt, output, weight)
        self._left = 0.0  # of the first waiting prompt

    def hand(self, prompt: int, output: int, weight: int) -> None:
        self.requests += 1
        self.work += weight
        self._waiting.append((prompt, output, weight))
        if len(self._waiting) == 1:
            self._left = float(prompt)

    def advance(self, until: float) -> None:
        """Everything that happens before `until`."""
        while self._now < until:
            if not self._decoding and not self._waiting:
                self._now = until
                return
            self._run(until)

    def _run(self, until: float) -> None:
        """Until the next event: a prompt is done, a sequence ends, or the time is up."""
        decoding = len(self._decoding)
        prompt = self._prompt_tokens(decoding)
        seconds = self._cost.seconds(
            StepShape(
                decoding + prompt,
                prompt,
                decoding,
                int(self._context),
                prompt * (self._waiting[0][0] if prompt else 0),
                decoding + (1 if prompt else 0),
                decoding + (1 if prompt else 0),
            )
        )
        steps = (until - self._now) / max(seconds, 1e-9)
        if decoding:
            steps = min(steps, self._decoding[0][0] - self._token)
        if prompt:
            steps = min(steps, self._left / prompt)
        steps = max(steps, 1e-6)
        self._token += steps
        self._now += steps * seconds
        self._context += steps * decoding
        if prompt:
            self._left -= steps * prompt
            if self._left <= 1e-3:
                self._start()
        while self._decoding and self._decoding[0][0] <= self._token + 1e-6:
            self._end()

    def _prompt_tokens(self, decoding: int) -> int:
        """Tokens of the first waiting prompt in a step; 0 while it has no seat or no room."""
        if not self._waiting or decoding >= self._seats:
            return 0
        if decoding and self._held + self._waiting[0][0] > self._room:
            return 0
        # Several short prompts share a step: the budget is theirs together, and none takes more than it has.
        return max(1, self._budget - decoding)

    def _start(self) -> None:
        prompt, output, weight = self._waiting.popleft()
        self._context += prompt
        self._held += prompt + output
        heapq.heappush(self._decoding, (self._token + output - 1, prompt + output, weight))
        if self._waiting:
            self._left = float(self._waiting[0][0])

    def _end(self) -> None:
        _, held, weight = heapq.heappop(self._decoding)
        self._context -= held
        self._held -= held
        self.requests -= 1
        self.work -= weight
