"""The built-in conversation: prompt and answer lengths shaped like the published campaign's, made from a seed.

The published campaign sent 1,000 ShareGPT requests.  Its twelve logs give totals, and the two rounds whose context
limit rejected long requests give two cuts through the joint distribution: 296 requests with prompt + answer <= 256
tokens hold 14,909 in and 29,120 out, 700 with <= 512 hold 82,224 and 108,536, all 1,000 hold 217,393 and about
198,700.  Inside each stratum the lengths follow correlated lognormals with a tenth of very short answers (those make
the tail of TPOT), tilted exponentially to the stratum's means and then corrected token by token to its exact totals.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.errors import ConfigError

MIN_TOKENS = 4
MAX_PROMPT = 1024
MAX_TOTAL = 2048

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Stratum:
    """Requests with `low` < prompt + answer <= `high`: how many of 1,000, and their tokens in all."""

    low: int
    high: int
    requests: int
    prompt_tokens: int
    output_tokens: int


STRATA = (
    Stratum(0, 256, 296, 14_909, 29_120),
    Stratum(256, 512, 404, 82_224 - 14_909, 108_536 - 29_120),
    Stratum(512, MAX_TOTAL, 300, 217_393 - 82_224, 198_700 - 108_536),
)


@dataclass(frozen=True, slots=True)
class LengthShape:
    """Correlated lognormals with a share of very short answers (3 to 25 tokens, log-uniform).

    The means hardly matter, since lengths are tilted to the means that are asked for; the widths do.
    """

    prompt_mu: float = 5.20
    prompt_sigma: float = 1.89
    output_mu: float = 5.25
    output_sigma: float = 0.61
    correlation: float = -0.02
    short_share: float = 0.10


PUBLISHED_SHAPE = LengthShape()


def matched_lengths(
    count: int, prompt_total: int, output_total: int, seed: int, shape: LengthShape = PUBLISHED_SHAPE
) -> list[tuple[int, int]]:
    """`count` pairs (prompt tokens, answer tokens) in random order, with these totals: for runs whose lengths nobody
    wrote down.  Raises ConfigError for totals that no lengths between the limits have."""
    if not (MIN_TOKENS * count <= prompt_total <= MAX_PROMPT * count and MIN_TOKENS * count <= output_total) or (
        prompt_total + output_total > MAX_TOTAL * count
    ):
        raise ConfigError(
            f"no {count} requests of {MIN_TOKENS} to {MAX_PROMPT} prompt tokens and at most {MAX_TOTAL} in all have "
            f"{prompt_total} prompt and {output_total} answer tokens; give the lengths themselves"
        )
    rng = np.random.default_rng([seed, 0x7074])
    stratum = Stratum(0, MAX_TOTAL, count, prompt_total, output_total)
    lengths = _stratum_lengths(stratum, count, prompt_total, output_total, rng, shape)
    return [(int(p), int(o)) for p, o in lengths[rng.permutation(len(lengths))]]


def conversation_lengths(count: int, seed: int) -> list[tuple[int, int]]:
    """`count` pairs (prompt tokens, answer tokens) in random order.

    The strata keep their shares (largest remainders) and, as nearly as so many requests can, their mean lengths; for
    1,000 the totals are the published ones exactly.
    """
    rng = np.random.default_rng([seed, 0xC0FFEE])
    parts: list[NDArray[np.int64]] = []
    for stratum, n in zip(STRATA, _shares(count), strict=True):
        if n:
            share = n / stratum.requests
            parts.append(
                _stratum_lengths(
                    stratum, n, round(stratum.prompt_tokens * share), round(stratum.output_tokens * share), rng
                )
            )
    lengths = np.concatenate(parts)
    return [(int(p), int(o)) for p, o in lengths[rng.permutation(len(lengths))]]


def _shares(count: int) -> list[int]:
    exact = [count * s.requests / 1000 for s in STRATA]
    shares = [int(x) for x in exact]
    by_remainder = sorted(range(len(STRATA)), key=lambda i: shares[i] - exact[i])
    for i in by_remainder[: count - sum(shares)]:
        shares[i] += 1
    return shares


def _stratum_lengths(
    stratum: Stratum,
    n: int,
    prompt_total: int,
    output_total: int,
    rng: np.random.Generator,
    shape: LengthShape = PUBLISHED_SHAPE,
) -> Ints:
    pool = _base_pool(stratum, 4000, rng, shape)
    weights = _tilt(pool, prompt_total / n, output_total / n)
    # Systematic resampling: one random offset, so that the drawn means stay close to the tilted ones.
    positions = (rng.random() + np.arange(n)) / n
    picked = np.minimum(np.searchsorted(np.cumsum(weights), positions), len(pool) - 1)
    lengths = pool[picked].copy()
    # An answer may leave its prompt no room to move (few requests only), so prompts get a second turn after answers.
    for column, wanted in ((0, prompt_total), (1, output_total), (0, prompt_total)):
        _correct(lengths, column, wanted, stratum, rng)
    return lengths


def _base_pool(stratum: Stratum, size: int, rng: np.random.Generator, shape: LengthShape) -> Ints:
    """Pairs of the untilted distribution that fall into the stratum: shape [size, 2]."""
    kept: list[Ints] = []
    have = 0
    while have < size:
        z = rng.standard_normal((4 * size, 2))
        r = shape.correlation
        prompt = np.exp(shape.prompt_mu + shape.prompt_sigma * z[:, 0])
        output = np.exp(shape.output_mu + shape.output_sigma * (r * z[:, 0] + np.sqrt(1 - r**2) * z[:, 1]))
        short = rng.random(4 * size) < shape.short_share
        output[short] = np.exp(rng.uniform(np.log(3), np.log(25), int(short.sum())))
        pairs = np.rint(np.stack([np.minimum(prompt, 1e6), output], axis=1)).astype(np.int64)
        pairs = pairs[_inside(pairs, stratum)]
        kept.append(pairs)
        have += len(pairs)
    return np.concatenate(kept)[:size]


def _inside(pairs: Ints, stratum: Stratum) -> NDArray[np.bool_]:
    total = pairs.sum(axis=1)
    fits: NDArray[np.bool_] = (
        (pairs.min(axis=1) >= MIN_TOKENS)
        & (pairs[:, 0] <= MAX_PROMPT)
        & (total > stratum.low)
        & (total <= stratum.high)
    )
    return fits


def _tilt(pool: Ints, prompt_mean: float, output_mean: float) -> NDArray[np.float64]:
    """Weights exp(a*prompt + b*output), normalised, under which the pool has the wanted means (Newton's method)."""
    target = np.array([prompt_mean, output_mean])
    scale = pool.std(axis=0)
    x = (pool - target) / scale
    theta = np.zeros(2)
    weights = np.full(len(pool), 1 / len(pool))
    for _ in range(100):
        exponent = x @ theta
        weights = np.exp(exponent - exponent.max())
        weights /= weights.sum()
        gradient = weights @ x
        if np.abs(gradient).max() < 1e-9:
            break
        hessian = (x * weights[:, None]).T @ x - np.outer(gradient, gradient)
        step = np.linalg.solve(hessian + 1e-9 * np.eye(2), gradient)
        theta -= step / max(1.0, float(np.abs(step).max()))
    return weights


def _correct(lengths: Ints, column: int, wanted: int, stratum: Stratum, rng: np.random.Generator) -> None:
    """Move lengths by one token, in place, until the column sums to `wanted`, or to the nearest total that it can have
    with the other column as it is; no request leaves its stratum."""
    while (missing := wanted - int(lengths[:, column].sum())) != 0:
        moved = lengths.copy()
        moved[:, column] += 1 if missing > 0 else -1
        movable = np.flatnonzero(_inside(moved, stratum))
        if not len(movable):
            return
        chosen = rng.permutation(movable)[: abs(missing)]
        lengths[chosen] = moved[chosen]
