"""What a simulation leaves: columns of times, from which the same records and metrics follow as from a measured run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.core.state import SchedulerConfig
from headrace.errors import InvariantError
from headrace.lab.records.schema import ChunkStamp, RequestRecord
from headrace.lab.sim.traffic import Traffic

Ints = NDArray[np.int64]

NEVER = -1
# Outcome.status: served, refused at the door (HTTP 400), given up by the scheduler (V0's "ignored": no output).
OK, REFUSED, DROPPED = 0, 1, 2

# Columns of Outcome.segments: how many steps, when the first began, StepShape's fields of the first, and the scheduler
# while they computed.
SEGMENT_COLUMNS = (
    "count",
    "start_ns",
    "tokens",
    "prefill_tokens",
    "decodes",
    "kv_tokens",
    "pairs",
    "rows",
    "sequences",
    "running",
    "waiting",
    "preempted",
)
_COLUMN = {name: index for index, name in enumerate(SEGMENT_COLUMNS)}


@dataclass(frozen=True)
class Outcome:
    """One simulated run; times in nanoseconds from its start, NEVER (-1) where something did not happen.

    sent_ns       the client sent it (later than planned only under `max_concurrency`)
    queued_ns     it entered the scheduler's queue
    scheduled_ns  start of the first step that computed for it
    ended_ns      last token, refusal, or drop
    status        OK, REFUSED or DROPPED
    preemptions   how often each request lost its blocks
    segments      rows of SEGMENT_COLUMNS: steps in a row that differ in nothing but their time and their context, which
                  grows by one token a sequence; `step` spells them out
    ends_ns, blocks_used   when each step ended, and the KV blocks in use while it computed
    runs          rows (request, first step, count): the request got one token in each of `count` steps in a row;
                  sorted by request, then by step
    """

    traffic: Traffic
    config: SchedulerConfig
    sent_ns: Ints
    queued_ns: Ints
    scheduled_ns: Ints
    ended_ns: Ints
    status: Ints
    preemptions: Ints
    segments: Ints
    ends_ns: Ints
    blocks_used: Ints
    runs: Ints

    @property
    def num_steps(self) -> int:
        return len(self.ends_ns)

    def step(self, column: str) -> Ints:
        """One of SEGMENT_COLUMNS (but `count`), `end_ns` or `blocks_used`, step by step."""
        if column == "end_ns":
            return self.ends_ns
        if column == "blocks_used":
            return self.blocks_used
        counts = self.segments[:, 0]
        values: Ints = np.repeat(self.segments[:, _COLUMN[column]], counts)
        firsts = np.cumsum(counts) - counts
        if column == "start_ns":
            later = np.ones(len(values), bool)
            later[firsts] = False
            values[later] = self.ends_ns[np.flatnonzero(later) - 1]
        elif column == "kv_tokens":
            values += (np.arange(len(values)) - np.repeat(firsts, counts)) * self.step("decodes")
        return values

    @cached_property
    def first_runs(self) -> Ints:
        """Row of each request's first run, NEVER without a token."""
        first = np.full(len(self.traffic), NEVER, np.int64)
        which, rows = np.unique(self.runs[:, 0], return_index=True)
        first[which] = rows
        return first

    @cached_property
    def first_token_ns(self) -> Ints:
        """NEVER without a token."""
        row = self.first_runs
        times = np.full(len(row), NEVER, np.int64)
        has = row >= 0
        times[has] = self.ends_ns[self.runs[row[has], 1]]
        return times

    @property
    def served(self) -> NDArray[np.bool_]:
        """Requests with their whole answer."""
        served: NDArray[np.bool_] = self.status == OK
        return served

    @property
    def duration_s(self) -> float:
        """From the start of the run to the end of the last answer, as the client counts it."""
        return int(self.ended_ns.max(initial=0)) / 1e9

    @property
    def ttft_s(self) -> NDArray[np.float64]:
        """From sending to the first token, of served requests in order."""
        waits: NDArray[np.float64] = (self.first_token_ns - self.sent_ns)[self.served] / 1e9
        return waits

    @property
    def e2e_s(self) -> NDArray[np.float64]:
        """From sending to the last token, of served requests in order."""
        sojourns: NDArray[np.float64] = (self.ended_ns - self.sent_ns)[self.served] / 1e9
        return sojourns

    @property
    def tpot_s(self) -> NDArray[np.float64]:
        """Seconds a token after the first, of served requests in order; NaN for answers of one token."""
        after = self.traffic.output_tokens[self.served] - 1
        decode = (self.ended_ns - self.first_token_ns)[self.served] / 1e9
        found: NDArray[np.float64] = np.divide(decode, after, out=np.full(len(after), np.nan), where=after > 0)
        return found

    def metrics(self) -> dict[str, float]:
        """What `run_result_from_records` computes from `records()`, without making them."""
        from headrace.lab.sim.statistics import metrics

        return metrics(self)

    def token_times_ns(self, request: int) -> Ints:
        """When each token of one request came."""
        ends = self.ends_ns
        mine = self.runs[self.runs[:, 0] == request]
        return np.concatenate([ends[first : first + count] for _, first, count in mine] or [ends[:0]])

    def records(self, *, start_ns: int = 0) -> list[RequestRecord]:
        """The run as its client would have written it down: one content chunk a token.

        start_ns  the run's start on the clock of the records
        """
        records = []
        bounds = np.searchsorted(self.runs[:, 0], np.arange(len(self.traffic) + 1))
        ends = self.ends_ns + start_ns
        columns = zip(
            self.traffic.planned_ns.tolist(),
            self.sent_ns.tolist(),
            self.ended_ns.tolist(),
            self.traffic.prompt_tokens.tolist(),
            self.traffic.output_tokens.tolist(),
            self.traffic.max_tokens.tolist(),
            self.status.tolist(),
            strict=True,
        )
        for index, (planned, sent, ended, prompt, output, most, status) in enumerate(columns):
            chunks = [
                ChunkStamp(int(t), "content")
                for _, first, count in self.runs[bounds[index] : bounds[index + 1]].tolist()
                for t in ends[first : first + count].tolist()
            ]
            record = RequestRecord(
                index=index,
                planned_ns=start_ns + planned,
                admitted_ns=start_ns + sent,
                sent_ns=start_ns + sent,
                headers_ns=start_ns + ended if status == REFUSED else (chunks[0].t_ns if chunks else None),
                done_ns=start_ns + ended,
                chunks=chunks,
                prompt_tokens_client=prompt,
                max_tokens=most,
                status=400 if status == REFUSED else 200,
            )
            if status == OK:
                record.prompt_tokens_server, record.output_tokens_server = prompt, output
                record.finish_reason = "length" if output == most else "stop"
            elif status == REFUSED:
                record.error_class, record.error = "http_4xx", "longer than the context or the KV cache (rule R13)"
            else:
                # vLLM V0 ends what it can never place with finish_reason "length" and no output.
                record.error_class, record.error = "protocol", "given up by the scheduler: no output"
                record.finish_reason = "length"
            records.append(record)
        return records

    def check(self) -> None:
        """Little's law and the conservation of tokens.  Raises InvariantError.

        The time integral of the number of requests between queue and end equals the sum of their sojourns (whole
        nanoseconds: exactly); the tokens that the steps computed are those of prompts and answers, and more only after
        preemptions or fewer only with the prefix cache; at most `num_blocks` are in use.
        """
        inside = self.queued_ns >= 0
        entries, exits = np.sort(self.queued_ns[inside]), np.sort(self.ended_ns[inside])
        times = np.unique(np.concatenate([entries, exits]))
        number = np.searchsorted(entries, times, "right") - np.searchsorted(exits, times, "right")
        integral = int((number[:-1] * np.diff(times)).sum())
        sojourns = int((self.ended_ns - self.queued_ns)[inside].sum())
        if integral != sojourns or (len(number) and number[-1] != 0):
            raise InvariantError(f"Little's law fails: {integral} ns in the system, {sojourns} ns of sojourns")
        served = self.served
        asked = int((self.traffic.prompt_tokens + self.traffic.output_tokens - 1)[served].sum())
        computed = int((self.segments[:, 0] * self.segments[:, _COLUMN["tokens"]]).sum())
        recomputed = bool(self.preemptions.any())
        if (computed > asked and not recomputed) or (computed < asked and not self.config.enable_prefix_caching):
            raise InvariantError(f"the steps computed {computed} tokens, the requests need {asked}")
        tokens = np.bincount(self.runs[:, 0], weights=self.runs[:, 2], minlength=len(self.traffic))
        if (tokens[served] != self.traffic.output_tokens[served]).any():
            raise InvariantError("a served request has not all of its tokens")
        if (self.blocks_used > self.config.num_blocks).any() or (np.diff(self.ends_ns) < 0).any():
            raise InvariantError("more blocks in use than there are, or time went back")

    def facts(self) -> Mapping[str, Any]:
        """What the scheduler did, for people: steps, preemptions, refusals, the fullest moment."""
        return {
            "steps": self.num_steps,
            "preemptions": int(self.preemptions.sum()),
            "refused": int((self.status == REFUSED).sum()),
            "dropped": int((self.status == DROPPED).sum()),
            "most_running": int(self.segments[:, _COLUMN["running"]].max(initial=0)),
            "most_blocks_used": int(self.blocks_used.max(initial=0)),
        }
