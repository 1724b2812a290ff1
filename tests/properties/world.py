"""A small world around the scheduler: a model whose KV cache is checked, clients, and the rules for both.

The model's next token is a hash of the whole prefix, read through the block table.  So a token is right only when
every position was computed, once, in its place, from what stood before it; and whatever the scheduler does
(chunks, preemption, cached prefixes, failures beside it), a request must end with the tokens that a plain loop
gives.  `World` is driven by the state machine of `test_scheduler_machine.py` and by the seeded driver below, which
also runs mutated copies of the core: it takes its modules as an argument.
"""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

from headrace.core import batch, invariants, request, scheduler, speculation

CORE = SimpleNamespace(
    batch=batch, invariants=invariants, request=request, scheduler=scheduler, speculation=speculation
)

VOCABULARY = 7
EOS = 0
POISON = -1
_MASK = (1 << 61) - 1


class BrokenPromise(AssertionError):
    """The world saw something that a correct scheduler never shows."""


def mix(state: int, token: int) -> int:
    state = (state ^ (token + 0x9E3779B9)) * 0xBF58476D1CE4E5B9 & _MASK
    return (state ^ state >> 29) * 0x94D049BB133111EB & _MASK


def sample(state: int) -> int:
    return (state >> 17) % VOCABULARY


def guess(tokens: list[int], least: int, most: int, count: int) -> list[int]:
    """What n-gram speculation must propose, found by looking at every place: the slow twin of NgramIndex."""
    for length in range(min(most, len(tokens) - 1), least - 1, -1):
        for end in range(length, len(tokens)):
            if tokens[end - length : end] == tokens[-length:]:
                return tokens[end : end + count]
    return []


class Client:
    """One request as its sender sees it: what it must receive, what it has received, how it ended."""

    def __init__(self, asked: Any, max_model_len: int) -> None:
        self.asked = asked
        self.received: list[int] = []
        self.finish: str | None = None
        # Prefix hashes of prompt and all tokens to come, and the expected output: a plain loop without a cache.
        # The salt is part of the content, so a hit across salts is a wrong value.
        state = mix(1, sum(map(ord, asked.cache_salt)))
        self.hashes = [state := mix(state, token) for token in asked.prompt_token_ids]
        self.expected: list[int] = []
        self.expected_finish = ""
        params = asked.params
        while not self.expected_finish:
            token = sample(state)
            self.expected.append(token)
            self.hashes.append(state := mix(state, token))
            total = len(asked.prompt_token_ids) + len(self.expected)
            stops = len(self.expected) >= params.min_tokens and (
                (token == EOS and not params.ignore_eos) or token in params.stop_token_ids
            )
            if stops:
                self.expected_finish = "stop"
            elif len(self.expected) == params.max_tokens or total == max_model_len:
                self.expected_finish = "length"


class World:
    """A scheduler, its model and its clients.  Every method leaves the invariants checked."""

    def __init__(self, config: dict[str, Any], core: SimpleNamespace = CORE) -> None:
        self.core = core
        lookahead = config.pop("speculation", None)
        self.config = core.scheduler.SchedulerConfig(
            **config, speculation=None if lookahead is None else core.speculation.Speculation(*lookahead)
        )
        self.scheduler = core.scheduler.Scheduler(self.config)
        self.kv = [[POISON] * self.config.block_size for _ in range(self.config.num_blocks)]
        self.clients: dict[str, Client] = {}
        self.meaning: dict[Any, list[int]] = {}  # what a block that is found by this key must hold
        self.refused = self.preemptions = 0
        # Tokens looked up and found, at first admissions and after preemptions.
        self.queries, self.hits = [0, 0], [0, 0]
        self.silent_steps = 0
        self.drafts = [0, 0, 0]  # chunks with drafts, drafts, right ones

    def arrive(self, prompt: list[int], *, priority: int = 0, salt: str = "", **params: Any) -> bool:
        """Send a request; False when it is refused, which must be for a reason."""
        number = len(self.clients) + self.refused
        kinds = self.core.request
        asked = kinds.Request(
            f"r{number}",
            prompt,
            kinds.SamplingParams(**params),
            eos_token_ids=frozenset({EOS}),
            priority=priority,
            arrived=float(number),
            cache_salt=salt,
        )
        longest = min(len(prompt) + asked.params.max_tokens, self.config.max_model_len)
        possible = 0 < len(prompt) < self.config.max_model_len and (
            longest <= self.config.num_blocks * self.config.block_size
        )
        try:
            self.scheduler.add(asked)
        except Exception as error:
            if possible or type(error).__name__ != "InvalidRequest":
                raise
            self.refused += 1
            return False
        if not possible:
            raise BrokenPromise(f"a request of up to {longest} tokens was accepted")
        self.clients[asked.request_id] = Client(asked, self.config.max_model_len)
        self._check()
        return True

    def live(self) -> list[str]:
        return [name for name, client in self.clients.items() if client.finish is None]

    def abort(self, name: str) -> None:
        """Abort in any phase; the second time it must be a no-op."""
        ended = self.scheduler.abort(name)
        if ended != (self.clients[name].finish is None):
            raise BrokenPromise(f"abort of {name} returned {ended}")
        if ended:
            self.clients[name].finish = "abort"
        if self.scheduler.abort(name):
            raise BrokenPromise(f"{name} was aborted twice")
        self._check()

    def reset_cache(self) -> None:
        in_use = self.config.num_blocks - self.scheduler.blocks.num_free
        if self.scheduler.reset_prefix_cache() != (in_use == 0):
            raise BrokenPromise(f"the prefix cache was reset with {in_use} blocks in use, or not without")
        self._check()

    def step(self, fail: tuple[int, ...] = (), abort: tuple[int, ...] = ()) -> None:
        """One turn of the engine's loop.  `fail` and `abort` pick chunks of the batch, modulo its size."""
        scheduler, invariants = self.scheduler, self.core.invariants
        self.silent_steps = self.silent_steps + 1 if scheduler.has_work else 0
        before = invariants.snapshot(scheduler)
        batch = scheduler.schedule()
        invariants.check_batch(scheduler, batch, before)
        self._check()
        self._count(batch)
        names = [chunk.sequence.request_id for chunk in batch.chunks]
        for index in abort if names else ():
            name = names[index % len(names)]
            if self.clients[name].finish is None:
                self.abort(name)
        failed = {names[index % len(names)]: "not a number" for index in fail} if names else {}
        self._check_drafts(batch)
        tokens, accepted, tainted = self._compute(batch, failed)
        self._count_drafts(batch, accepted, failed.keys() | tainted)
        events = scheduler.commit(batch, self.core.batch.StepResult(tokens, failed, accepted))
        self._check()
        self._check_findable(batch)
        self._receive(events, failed, tainted, {sequence.request_id for sequence in batch.dropped})

    def drain(self) -> None:
        """Run until nothing is left, then account for everybody."""
        while self.scheduler.has_work:
            self.step()
        if self.live():
            raise BrokenPromise(f"{self.live()} never ended")
        blocks = self.scheduler.blocks
        if blocks.num_free != self.config.num_blocks or self.scheduler.num_running or self.scheduler.num_waiting:
            raise BrokenPromise(f"{self.config.num_blocks - blocks.num_free} blocks are not given back")
        counters = self.scheduler.counters
        queries = [counters.prefix_queries, counters.preempted_queries]
        hits = [counters.prefix_hits, counters.preempted_hits]
        if self.config.enable_prefix_caching and (queries != self.queries or hits != self.hits):
            raise BrokenPromise(f"counted {hits} hits of {queries}, were {self.hits} of {self.queries}")
        counted = [counters.drafts, counters.draft_tokens, counters.accepted_tokens]
        if counted != self.drafts or sum(counters.accepted_at) != self.drafts[2]:
            raise BrokenPromise(f"counted {counted} drafts ({counters.accepted_at}), were {self.drafts}")
        if counters.preemptions != self.preemptions:
            raise BrokenPromise(f"{self.preemptions} preemptions, counted {counters.preemptions}")

    def _check(self) -> None:
        self.core.invariants.check(self.scheduler)

    def _check_findable(self, batch: Any) -> None:
        """Whoever may be found in the prefix cache holds exactly what its key says."""
        size = self.config.block_size
        for chunk in batch.chunks:
            hashes = self.clients[chunk.sequence.request_id].hashes
            for index, key in enumerate(chunk.sequence.block_keys):
                content = hashes[index * size : (index + 1) * size]
                if self.meaning.setdefault(key, content) != content:
                    raise BrokenPromise(f"two different prefixes have the key {key}")
        for block, key in enumerate(self.scheduler.blocks._keys):
            if key is not None and self.kv[block] != self.meaning[key]:
                raise BrokenPromise(f"block {block} is findable and holds something else")

    def _count(self, batch: Any) -> None:
        starts = {chunk.sequence: chunk.start for chunk in batch.chunks}
        for sequence in batch.admitted:
            again = sequence.num_preemptions > 0
            self.queries[again] += sequence.num_tokens
            self.hits[again] += starts[sequence]
        self.preemptions += len(batch.preempted)

    def _check_drafts(self, batch: Any) -> None:
        """Every decode has the drafts that its own tokens give, as many as there is room for."""
        rules, blocks = self.config.speculation, self.scheduler.blocks
        left = self.config.max_num_batched_tokens - batch.num_tokens
        for chunk in batch.chunks:
            sequence, drafts = chunk.sequence, list(chunk.drafts)
            if rules is None or chunk.start < sequence.prefill_length:
                if drafts:
                    raise BrokenPromise(f"{sequence} has drafts and should have none")
                continue
            most = min(rules.num_speculative_tokens, sequence.length_limit - sequence.num_tokens - 1)
            if threshold := self.config.long_prefill_token_threshold:
                most = min(most, threshold - 1)
            best = guess(sequence.token_ids, rules.prompt_lookup_min, rules.prompt_lookup_max, max(most, 0))
            if drafts != best[: len(drafts)]:
                raise BrokenPromise(f"{sequence} has the drafts {drafts}, expected {best}")
            is_full = (chunk.start + chunk.length) % self.config.block_size == 0 and not blocks.num_free
            if len(drafts) < len(best) and left and not is_full:
                raise BrokenPromise(f"{sequence} has the drafts {drafts} and room for {best}")

    def _count_drafts(self, batch: Any, accepted: dict[str, int], void: set[str]) -> None:
        for chunk in batch.chunks:
            name = chunk.sequence.request_id
            if chunk.drafts and name not in void and self.clients[name].finish is None:
                self.drafts[0] += 1
                self.drafts[1] += len(chunk.drafts)
                self.drafts[2] += accepted.get(name, 0)

    def _compute(self, batch: Any, failed: dict[str, str]) -> tuple[tuple[int, ...], dict[str, int], set[str]]:
        """Fill the KV cache, sample, verify drafts.  Also returns who has read what a failed row wrote.

        Every layer writes its K/V before attention reads, so a chunk may read what another one writes in the same
        step, in whatever order they stand.
        """
        size, kv = self.config.block_size, self.kv
        sampled: dict[str, int] = {}
        accepted: dict[str, int] = {}
        tainted: set[str] = set()
        slots = {}
        for chunk in batch.chunks:
            table = chunk.sequence.block_table
            slots[chunk.sequence.request_id] = [
                (table[position // size], position % size) for position in range(chunk.start + chunk.length)
            ]
        pending = list(batch.chunks)
        ruined = set()
        while pending:
            unwritten = [set(slots[c.sequence.request_id][c.start :]) for c in pending]
            for index, chunk in enumerate(pending):
                others = set().union(*unwritten[:index], *unwritten[index + 1 :])
                if not others.intersection(slots[chunk.sequence.request_id][: chunk.start]):
                    break
            else:
                raise BrokenPromise("chunks wait for each other's K/V")
            del pending[index]
            name = chunk.sequence.request_id
            client, mine = self.clients[name], slots[name]
            if not ruined.isdisjoint(mine[: chunk.start]):
                tainted.add(name)
            else:
                for position, (block, offset) in enumerate(mine[: chunk.start]):
                    if kv[block][offset] != client.hashes[position]:
                        raise BrokenPromise(f"{name} reads a wrong value at position {position}")
            token_ids = [*chunk.sequence.token_ids, *chunk.drafts]
            prompt = client.asked.prompt_token_ids
            salted = mix(1, sum(map(ord, client.asked.cache_salt)))
            state = kv[mine[chunk.start - 1][0]][mine[chunk.start - 1][1]] if chunk.start else salted
            known = prompt + client.received
            if token_ids[: len(known)] != known or len(known) != chunk.sequence.num_tokens:
                raise BrokenPromise(f"{name} holds other tokens than were sent and received")
            for position in range(chunk.start, chunk.start + chunk.length):
                block, offset = mine[position]
                state = mix(state, token_ids[position])
                if name in failed or name in tainted:
                    state = POISON
                    ruined.add((block, offset))
                kv[block][offset] = state
                # Behind a wrong draft nothing counts any more.
                right = accepted.get(name, 0) == position - len(known)
                if position >= len(known) and right and sampled[name] == token_ids[position]:
                    accepted[name] = position - len(known) + 1
                if chunk.samples and accepted.get(name, 0) == position - len(known) + 1:
                    sampled[name] = sample(state)
        tokens = tuple(sampled[c.sequence.request_id] for c in batch.chunks if c.samples)
        return tokens, accepted, tainted

    def _receive(self, events: tuple[Any, ...], failed: dict[str, str], tainted: set[str], dropped: set[str]) -> None:
        for event in events:
            self.silent_steps = 0
            name = event.request_id
            client = self.clients[name]
            if client.finish is not None:
                raise BrokenPromise(f"{name} ended with {client.finish} and still gets {event}")
            if event.token_id is not None:
                if name in failed or name in tainted:
                    raise BrokenPromise(f"{name} gets a token from a failed row")
                client.received.append(event.token_id)
                if client.received != client.expected[: len(client.received)]:
                    raise BrokenPromise(f"{name} got {client.received}, expected {client.expected}")
            if event.finish_reason is not None:
                client.finish = str(event.finish_reason)
                whole = client.received == client.expected and client.finish == client.expected_finish
                if not whole and not (name in dropped or (name in failed and client.finish == "error")):
                    raise BrokenPromise(f"{name} ended with {client.finish} after {client.received}")
            elif client.received == client.expected:
                raise BrokenPromise(f"{name} should have ended with {client.expected_finish}")
        if missing := [name for name in failed if self.clients[name].finish is None]:
            raise BrokenPromise(f"{missing} failed and go on")
        # Nobody computes for ever without a token: a step that admits beside running sequences serves them all.
        if self.silent_steps > 20 * self.config.max_model_len:
            raise BrokenPromise(f"no event for {self.silent_steps} steps")


POLICIES = ("v1", "v1-whole", "v0", "v0-chunked")


def make_config(draw: Any, **settings: Any) -> dict[str, Any]:
    """A legal configuration with small blocks and few of them: that is what bites.

    `draw` picks from a tuple; `settings` are fixed.
    """
    policy = settings.get("policy") or draw(POLICIES)
    block_size = draw((1, 2, 4))
    max_model_len = draw((8, 12, 24))
    num_seqs = draw((1, 2, 3, 8, 8))
    budget = draw((num_seqs, num_seqs + 1, num_seqs + 4, 24, 64))
    caching = settings.get("enable_prefix_caching", draw((True, True, False)))
    if policy == "v1-whole":
        budget = max(budget, max_model_len)
    if policy == "v0-chunked" and caching:
        budget += -budget % block_size
    fits = -(-max_model_len // block_size)
    return {
        "policy": policy,
        "max_num_batched_tokens": budget,
        "max_num_seqs": num_seqs,
        "max_model_len": max_model_len,
        "block_size": block_size,
        "num_blocks": draw((max(1, fits - 1), fits, fits, fits + 1, fits + 3, 2 * fits, 6 * fits)),
        "enable_prefix_caching": caching,
        "long_prefill_token_threshold": draw((0, 0, 2, 5)) if policy.startswith("v1") else 0,
        "scheduling_policy": draw(("fcfs", "fcfs", "priority")),
        "reserve_full": draw((True, False)),
        "watermark": draw((None, None, 0.2)),
        "hash_at": draw((None, "plan", "after_plan", "after_step")),
        "speculation": draw((None, (1, 1, 1), (3, 2, 1), (4, 3, 2), (12, 3, 1))),
    } | settings


def make_prompt(draw: Any, most: int) -> list[int]:
    """Prompts of few families, so that prefixes are shared, ended by a few tokens of their own."""
    family, length = draw((1, 1, 2, 3)), draw(tuple(range(1, most + 1)))
    shared = [(family * 5 + position * position) % VOCABULARY for position in range(length)]
    tail = min(draw((0, 0, 1, 3)), length)
    return shared[: length - tail] + [draw((1, 2)) for _ in range(tail)]


def make_params(draw: Any) -> dict[str, Any]:
    max_tokens = draw((1, 2, 5, 9, 30, 30))
    return {
        "max_tokens": max_tokens,
        "min_tokens": min(draw((0, 0, 0, 2, 6)), max_tokens),
        "ignore_eos": draw((False, True)),
        "stop_token_ids": draw(((), (), (3,))),
    }


def run_world(seed: int, core: SimpleNamespace = CORE, **settings: Any) -> World:
    """One seeded life of a world, with the same rules as the state machine: arrive, step, abort, fail, reset."""
    generator = random.Random(seed)
    draw = generator.choice
    world = World(make_config(draw, **settings), core)
    salts = draw((("",), ("", "tenant")))
    abort_rate, fail_rate = draw((0.0, 0.05)), draw((0.0, 0.05))
    # Short prompts run together and then grow out of the pool; long ones are chunked.
    longest = draw((5, 5, world.config.max_model_len))
    for _ in range(draw((10, 40))):
        for _ in range(draw((0, 0, 1, 2, 6))):
            prompt = make_prompt(draw, longest)
            world.arrive(prompt, priority=draw((0, 1, 2)), salt=draw(salts), **make_params(draw))
        live = world.live()
        if live and generator.random() < abort_rate:
            world.abort(draw(live))
        if generator.random() < 0.02:
            world.reset_cache()
        picks = tuple(range(8))
        world.step(
            fail=(draw(picks),) if generator.random() < fail_rate else (),
            abort=(draw(picks),) if generator.random() < abort_rate else (),
        )
    world.drain()
    return world
