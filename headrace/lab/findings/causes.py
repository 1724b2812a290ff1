"""Why the figures are as they are: arithmetic on the printed means that holds for any server.

Little's law (mean number in a system = throughput x mean time in it) needs no model of the scheduler; the cost of a
token needs only the run's totals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from headrace.lab.findings.finding import Finding
from headrace.lab.findings.stats import allowance, too_noisy
from headrace.lab.findings.table import Table, mean
from headrace.lab.findings.words import listed, milliseconds, number, percent, plural, times
from headrace.lab.records.results import Cell, Json

# TTFT this many times the time to compute a prompt is not explained by prefill.
QUEUE_FACTOR = 5.0
# The prompts' own computation explains TTFT when the mean is within these shares of what all of them take together:
# about half where they are computed one after the other, all where one step takes them all.
TOGETHER = (0.25, 1.5)
# A step counts as full when it carries at least this share of its budget, as estimated from the run's totals.
FULL_STEP = 0.8
# Step time ~ tokens^k over full steps: from here on "nearly proportional", below the other "hardly grows".
PROPORTIONAL_EXPONENT = 0.8
FLAT_EXPONENT = 0.5
# The whole run's cost of a token may differ by this much between cells and still be called the same.
SAME_COST = 0.25


@dataclass(frozen=True, slots=True)
class Flow:
    """One cell's flow of requests, all means: what Little's law gives.

    in_system, decoding, waiting   requests; waiting = sent, without a first token yet
    ttft_s, decode_s               seconds of one request before and after its first token
    prefill_s                      about the time that the device needs for one mean prompt, at the run's mean cost
                                   of a token (which contains decoding, so it is an upper estimate)
    decode_from                    what decode_s was computed from
    """

    cell: Cell
    throughput: float
    in_system: float
    decoding: float
    waiting: float
    ttft_s: float
    decode_s: float
    prefill_s: float
    prompt_tokens: float
    output_tokens: float
    completed: float
    decode_from: str

    @property
    def at_once(self) -> bool:
        return self.cell.settings.get("request_rate") == "inf" and "ramp_up_strategy" not in self.cell.settings

    @property
    def places(self) -> tuple[float, str] | None:
        """How many requests can run at once and what limits them; None where neither limit is stated."""
        found: list[tuple[float, str]] = []
        settings = self.cell.settings
        if isinstance(seqs := settings.get("max_num_seqs"), int):
            found.append((seqs, "max_num_seqs"))
        blocks, size = settings.get("num_blocks"), settings.get("block_size")
        if isinstance(blocks, int) and isinstance(size, int):
            # a request holds its prompt and, on average over its life, half of its answer
            held = self.prompt_tokens + self.output_tokens / 2
            found.append((math.floor(blocks * size / held), f"the KV cache of {blocks * size} tokens"))
        return min(found) if found else None

    @property
    def queues(self) -> bool:
        """More requests are in the system than can run: the rest waits, whatever the device does."""
        return self.places is not None and self.in_system > self.places[0]


def flow_of(cell: Cell) -> Flow | None:
    """Little's law on one cell; None when a figure that it needs is missing."""
    completed, duration = mean(cell, "completed"), mean(cell, "duration")
    ttft, tokens_in, tokens_out = (
        mean(cell, "mean_ttft_ms"), mean(cell, "total_input_tokens"), mean(cell, "total_output_tokens"),
    )  # fmt: skip
    if not completed or not duration or ttft is None or not tokens_in or not tokens_out:
        return None
    decode = _decode_s(cell, ttft, completed, tokens_out)
    if decode is None:
        return None
    decode_s, source = decode
    throughput = completed / duration
    ttft_s = ttft / 1000
    prompt = tokens_in / completed
    return Flow(
        cell, throughput, throughput * (ttft_s + decode_s), throughput * decode_s, throughput * ttft_s, ttft_s,
        decode_s, prompt * duration / (tokens_in + tokens_out), prompt, tokens_out / completed, completed, source,
    )  # fmt: skip


def _decode_s(cell: Cell, ttft_ms: float, completed: float, tokens_out: float) -> tuple[float, str] | None:
    e2el = mean(cell, "mean_e2el_ms")
    if e2el is not None and e2el > ttft_ms:
        return (e2el - ttft_ms) / 1000, "E2EL - TTFT"
    gaps = max(tokens_out / completed - 1, 0.0)
    # The mean ITL is over all gaps of all requests, so it weighs long answers rightly; the mean TPOT is over requests.
    # With speculative decoding a gap carries several tokens, and only TPOT counts tokens.
    itl = mean(cell, "mean_itl_ms")
    if itl and mean(cell, "spec_decode_acceptance_length") is None:
        return gaps * itl / 1000, "mean ITL x (output tokens - 1)"
    tpot = mean(cell, "mean_tpot_ms")
    return (gaps * tpot / 1000, "mean TPOT x (output tokens - 1)") if tpot else None


def queueing(table: Table, chosen: Cell | None) -> list[Finding]:
    """Is TTFT the wait for a place, or the computation of the prompts?  Told for `chosen`, checked in every cell.

    Waiting is claimed only where more requests are in the system than can run.
    """
    flows = [flow for cell in table.cells if (flow := flow_of(cell)) is not None and _is_open(cell)]
    long = [flow for flow in flows if flow.waiting >= 1 and flow.ttft_s >= QUEUE_FACTOR * flow.prefill_s]
    waiting = [flow for flow in long if flow.queues]
    if not waiting:
        return _prefilled_together([flow for flow in long if flow.at_once], chosen)
    told = _told(waiting, chosen)
    name = told.cell.name
    opening = "At request rate inf TTFT" if told.at_once else "TTFT"
    spent = number(told.ttft_s + told.decode_s)
    claim = (
        f"{opening} is waiting in the queue, not prefill. In {name} {number(told.in_system)} requests are in the "
        f"system on average ({number(told.throughput)} requests/s x {spent} s)"
    )
    if told.places is not None:
        claim += f", but at most {told.places[0]:g} can run ({told.places[1]})"
    claim += (
        f": {number(told.decoding)} decode and {number(told.waiting)} wait for their first token. A mean TTFT of "
        f"{number(told.ttft_s)} s stands against {number(told.decode_s)} s of decoding and about "
        f"{milliseconds(1000 * told.prefill_s)} to compute a prompt of {number(told.prompt_tokens)} tokens."
    )
    if len(waiting) == len(flows) > 1:
        shares = [flow.ttft_s / (flow.ttft_s + flow.decode_s) for flow in flows]
        claim += (
            f" In all {len(flows)} cells {percent(min(shares))} to {percent(max(shares))} of a request's time passes "
            "before its first token."
        )
    caveats = ["Little's law on printed means: it needs no steady state, but the means include the start and the end."]
    if told.decode_from != "E2EL - TTFT":
        caveats.append(f"The log has no end-to-end latency; decoding time is {told.decode_from}.")
    cells = tuple(flow.cell.name for flow in waiting)
    return [Finding("queueing.ttft", "queueing", claim, _figures(flows), cells, tuple(caveats))]


def _told(flows: Sequence[Flow], chosen: Cell | None) -> Flow:
    return next((flow for flow in flows if chosen is not None and flow.cell.name == chosen.name), flows[0])


def _prefilled_together(flows: Sequence[Flow], chosen: Cell | None) -> list[Finding]:
    """All requests arrive at once and all can run: each first token waits for the other prompts' computation."""
    explained = [
        flow
        for flow in flows
        if flow.places is not None
        and flow.completed <= flow.places[0]
        and TOGETHER[0] <= flow.ttft_s / (flow.completed * flow.prefill_s) <= TOGETHER[1]
    ]
    if not explained:
        return []
    told = _told(explained, chosen)
    assert told.places is not None  # chosen so above
    tokens, budget = told.completed * told.prompt_tokens, told.cell.settings.get("max_num_batched_tokens")
    claim = (
        f"TTFT is the prefill of all prompts together, not a queue. In {told.cell.name} {told.completed:g} requests "
        f"arrive at once and {told.places[0]:g} can run ({told.places[1]}); their prompts are {tokens:.0f} tokens"
    )
    if isinstance(budget, int) and budget > 0:
        claim += f", at least {plural(math.ceil(tokens / budget), 'step')} of {budget} tokens"
    claim += (
        f". At the run's mean cost of a token that is about {milliseconds(1000 * told.completed * told.prefill_s)} "
        f"for all of them, against a mean TTFT of {milliseconds(1000 * told.ttft_s)}."
    )
    caveats = ("The mean cost of a token contains decoding, so the prompts' time is an upper estimate.",)
    cells = tuple(flow.cell.name for flow in explained)
    return [Finding("ttft.prefill-together", "ttft", claim, _figures(explained), cells, caveats)]


def _figures(flows: Sequence[Flow]) -> dict[str, Json]:
    return {
        flow.cell.name: {
            "throughput_req_s": round(flow.throughput, 4),
            "in_system": round(flow.in_system, 1),
            "decoding": round(flow.decoding, 1),
            "waiting": round(flow.waiting, 1),
            "max_num_seqs": flow.cell.settings.get("max_num_seqs"),
            "ttft_s": round(flow.ttft_s, 3),
            "decode_s": round(flow.decode_s, 3),
            "prefill_s": round(flow.prefill_s, 4),
        }
        for flow in flows
    }


def _is_open(cell: Cell) -> bool:
    """Requests arrive whether or not others have left; with a concurrency limit the client holds the queue."""
    return cell.settings.get("max_concurrency") is None


def step_time(table: Table) -> list[Finding]:
    """Does a step's time follow the tokens in it?  Then the device is busy, and a larger budget buys no throughput."""
    if table.factor is None or table.factor.key != "max_num_batched_tokens" or not table.series:
        return []
    full: list[tuple[float, float, Cell]] = []
    for budget, cell in table.series[0].points:
        itl, cost = mean(cell, "median_itl_ms"), _ms_per_token(cell)
        # the median step, at the run's mean cost of a token, carries itl/cost tokens
        if itl and cost and itl / cost >= FULL_STEP * budget:
            full.append((budget, itl, cell))
    costs = {cell.name: cost for cell in table.cells if (cost := _ms_per_token(cell)) is not None}
    if len(full) < 2 or not costs:
        return []
    if too_noisy("median_itl_ms", allowance("median_itl_ms", [cell for *_, cell in full])):
        return []  # an exponent from such steps would describe the machine's other work
    (t0, m0, _), (t1, m1, _) = full[0], full[-1]
    exponent = math.log(m1 / m0) / math.log(t1 / t0)
    grows = f"{times(t1 / t0)} times the tokens take {times(m1 / m0)} times the time"
    steps = f"{milliseconds(m0)} at {t0:g} tokens, {milliseconds(m1)} at {t1:g}"
    numbers: dict[str, Json] = {
        "median_step_ms": {f"{budget:g}": itl for budget, itl, _ in full},
        "step_ms_per_token": {f"{budget:g}": round(itl / budget, 4) for budget, itl, _ in full},
        "run_ms_per_token": {name: round(cost, 4) for name, cost in costs.items()},
        "exponent": round(exponent, 3),
    }
    cells = tuple(dict.fromkeys([cell.name for _, _, cell in full] + list(costs)))
    low, high = min(costs.values()), max(costs.values())
    per_token = f"the whole run costs about {(low + high) / 2:.1g} ms a token in every cell ({low:.3g} to {high:.3g})"
    if exponent >= PROPORTIONAL_EXPONENT and high <= low * (1 + SAME_COST):
        claim = (
            f"The time of a step is nearly proportional to the tokens in it ({steps}: {grows}), and {per_token}: the "
            "device is saturated, so the budget moves latency between phases instead of buying throughput."
        )
    elif exponent >= PROPORTIONAL_EXPONENT:
        claim = f"The time of a full step is nearly proportional to the tokens in it ({steps}: {grows}); {per_token}."
    elif exponent < FLAT_EXPONENT:
        claim = (
            f"The time of a step hardly grows with the tokens in it ({steps}: {grows}): the device is not saturated at "
            "these budgets, and a larger budget buys throughput."
        )
    else:
        claim = (
            f"The time of a step grows less than its tokens ({steps}: {grows}): a larger budget buys some throughput."
        )
    names = listed([cell.name for _, _, cell in full])
    caveats = (f"The step time is the median ITL of the cells whose steps are full by the totals ({names}).",)
    return [Finding("step-time.tokens", "step-time", claim, numbers, cells, caveats)]


def _ms_per_token(cell: Cell) -> float | None:
    duration, tokens_in, tokens_out = (
        mean(cell, "duration"), mean(cell, "total_input_tokens"), mean(cell, "total_output_tokens"),
    )  # fmt: skip
    if not duration or tokens_in is None or not tokens_out:
        return None
    return 1000 * duration / (tokens_in + tokens_out)
