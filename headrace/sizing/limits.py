"""The legal range of every setting while the others stay, with the rule that bounds it; and what each setting costs.

Both are found by asking the same rules and the same memory plan again with other values, so they cannot differ from
what a server would say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from headrace.errors import ConfigError
from headrace.sizing.deployment import Deployment, judged, start_up
from headrace.sizing.rules import errors, explain
from headrace.sizing.settings import Violation

MOST = 1 << 24


@dataclass(frozen=True, slots=True)
class Limit:
    """What values of one flag are legal.

    least, most       None: no legal value was found there
    below, above      what stops a smaller and a larger value: rule and reason; None: nothing does
    """

    flag: str
    value: float
    least: float | None
    most: float | None
    below: tuple[str, str] | None
    above: tuple[str, str] | None


@dataclass(frozen=True, slots=True)
class Price:
    """What a change of one setting does to the KV cache, in tokens, and to the steps, in words."""

    change: str
    kv_tokens: int
    effect: str


Change = Callable[[Deployment, float], Deployment]


def _setting(name: str) -> Change:
    def change(server: Deployment, value: float) -> Deployment:
        changed: dict[str, Any] = {name: int(value)}
        return replace(server, settings=replace(server.settings, **changed))

    return change


def _utilization(server: Deployment, percent: float) -> Deployment:
    return replace(server, utilization=percent / 100)


_FLAGS: tuple[tuple[str, Callable[[Deployment], float], Change], ...] = (
    ("--max-num-batched-tokens", lambda s: s.settings.max_num_batched_tokens, _setting("max_num_batched_tokens")),
    ("--max-num-seqs", lambda s: s.settings.max_num_seqs, _setting("max_num_seqs")),
    ("--max-model-len", lambda s: s.settings.max_model_len, _setting("max_model_len")),
    (
        "--long-prefill-token-threshold",
        lambda s: s.settings.long_prefill_token_threshold,
        _setting("long_prefill_token_threshold"),
    ),
    ("--max-num-partial-prefills", lambda s: s.settings.max_num_partial_prefills, _setting("max_num_partial_prefills")),
    (
        "--max-long-partial-prefills",
        lambda s: s.settings.max_long_partial_prefills,
        _setting("max_long_partial_prefills"),
    ),
)


def limits(server: Deployment) -> tuple[Limit, ...]:
    """One entry a flag; --gpu-memory-utilization only with a device."""
    found = [_limit(server, flag, value(server), change, 0, MOST) for flag, value, change in _FLAGS]
    if server.total_bytes is not None and server.blocks is None and server.kv_memory_bytes is None:
        percent = _limit(server, "--gpu-memory-utilization", round(100 * server.utilization), _utilization, 1, 100)
        scaled = [None if each is None else each / 100 for each in (percent.least, percent.most)]
        found.append(replace(percent, value=server.utilization, least=scaled[0], most=scaled[1]))
    return tuple(found)


def _limit(server: Deployment, flag: str, value: float, change: Change, least: int, most: int) -> Limit:
    longest = server.model.max_position_embeddings

    def broken(number: int) -> tuple[str, str] | None:
        if flag == "--max-model-len" and longest is not None and number > longest:
            return "model", f"max_position_embeddings of the model is {longest}"
        found = errors(judged(change(server, number)))
        return (found[0].rule, _reason(found[0], flag)) if found else None

    start = _legal_near(int(value), broken, least, most)
    if start is None:
        why = broken(int(value))
        return Limit(flag, value, None, None, why, why)
    low = _edge(start, least, broken)
    high = _edge(start, most, broken)
    below = broken(low - 1) if low > least else None
    above = broken(high + 1) if high < most else None
    return Limit(flag, value, low, high, below, above)


def _reason(violation: Violation, flag: str) -> str:
    if violation.flag == flag:
        return f"must be {violation.bound}"
    return explain(violation).partition(": ")[2].partition("; ")[0]


def _legal_near(value: int, broken: Callable[[int], object], least: int, most: int) -> int | None:
    """A legal value, the current one if it is: powers of two and the current value's neighbours otherwise."""
    candidates = [value, *(1 << power for power in range(25)), 0]
    candidates.sort(key=lambda each: abs(each - value))
    return next((each for each in candidates if least <= each <= most and broken(each) is None), None)


def _edge(legal: int, end: int, broken: Callable[[int], object]) -> int:
    """The last legal value between a legal one and `end`; legality is an interval for every rule."""
    if broken(end) is None:
        return end
    good, bad = legal, end
    while abs(good - bad) > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if broken(middle) is None else (good, middle)
    return good


def prices(server: Deployment) -> tuple[Price, ...]:
    """Tokens of KV cache gained or lost by one change each.  Needs a device whose memory is divided."""
    settings = server.settings
    now = start_up(server).kv_tokens
    seats = max(1, settings.max_num_seqs)
    changes: list[tuple[str, Deployment, str]] = [
        (
            "+1024 of --max-num-batched-tokens",
            _setting("max_num_batched_tokens")(server, settings.max_num_batched_tokens + 1024),
            "fewer steps for prompts, longer steps for those who decode",
        ),
        (
            f"--max-num-seqs {2 * seats} instead of {seats}",
            _setting("max_num_seqs")(server, 2 * seats),
            "more sequences at once: throughput for latency",
        ),
        (
            f"--max-num-seqs {-(-seats // 2)} instead of {seats}",
            _setting("max_num_seqs")(server, -(-seats // 2)),
            "fewer sequences at once: latency for throughput",
        ),
        (
            "+0.01 of --gpu-memory-utilization",
            replace(server, utilization=min(1.0, server.utilization + 0.01)),
            "less room for graphs and fragments",
        ),
        (
            "--kv-cache-dtype fp8",
            replace(server, kv_dtype="fp8"),
            "half the reads of the cache; needs a check of accuracy",
        ),
        (
            f"--tensor-parallel-size {2 * server.tensor_parallel}",
            replace(server, tensor_parallel=2 * server.tensor_parallel, version=server.version),
            "two all-reduces a layer; the sampler's peak is not divided",
        ),
        (
            f"--max-model-len {max(1, settings.max_model_len // 2)}",
            _setting("max_model_len")(server, max(1, settings.max_model_len // 2)),
            "only the check at the start changes"
            if settings.enable_chunked_prefill
            else "and the smallest budget with it",
        ),
    ]
    found = []
    for name, changed, effect in changes:
        try:
            found.append(Price(name, start_up(changed).kv_tokens - now, effect))
        except ConfigError:
            continue  # a KV format that the model cannot have
    return tuple(found)
