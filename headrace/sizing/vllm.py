"""How vLLM divides a device at start-up: what its profile run measures, by version, with the evidence.

The identity is its own: KV = total * utilization - weights - activation peak - other memory.  The peak is the larger of
a forward pass over `max_num_batched_tokens` and a sampler over `max_num_seqs` rows; how many float32 copies of the
logits the sampler holds is a property of the version, and the largest surprise in practice.
"""

from __future__ import annotations

from dataclasses import dataclass

from headrace.errors import ConfigError
from headrace.sizing.hardware import GIB, Device
from headrace.sizing.memory import forward_bytes
from headrace.sizing.modules import Described


@dataclass(frozen=True, slots=True)
class Span:
    """A size in bytes (or a factor) that is known within limits."""

    low: float
    likely: float
    high: float


@dataclass(frozen=True, slots=True)
class Version:
    """What changed from this version on.

    sampler   copies of the logits, float32 `[rows, vocabulary]`, that the profile run holds at its peak
    base      the rest of the peak: attention workspace and what the forward pass leaves behind
    other     memory outside of torch's allocator that grows while profiling: (one rank, several ranks)
    """

    first: tuple[int, int]
    sampler: Span
    base: Span
    other: tuple[Span, Span]
    evidence: str


def _gib(low: float, likely: float, high: float) -> Span:
    return Span(low * GIB, likely * GIB, high * GIB)


VERSIONS: tuple[Version, ...] = (
    Version(
        (0, 6),
        Span(9.5, 10.3, 10.5),
        _gib(0, 0, 0.1),
        (_gib(0, 0.02, 0.2), _gib(0.1, 0.4, 0.8)),
        "vllm#10511: 1.26 GiB for Llama-3-8B at 256 sequences",
    ),
    Version(
        (0, 7),
        Span(4.4, 9.7, 10.5),
        _gib(0, 0.03, 0.1),
        (_gib(0, 0.07, 0.15), _gib(0.1, 0.4, 0.6)),
        "vllm#13594; no log of these versions at hand, so that the neighbours' values bound it",
    ),
    Version(
        (0, 10),
        Span(4.4, 4.75, 5.2),
        _gib(0, 0.03, 0.08),
        (_gib(0.01, 0.04, 0.08), _gib(0.2, 0.26, 0.55)),
        "16 start-up logs of 0.10.0 and 0.10.1.1 (docs/sizing.md)",
    ),
    Version(
        (0, 11),
        Span(4.75, 9.7, 9.9),
        _gib(0, 0.03, 0.08),
        (_gib(0.02, 0.13, 0.15), _gib(0.26, 0.55, 0.6)),
        "seven runs in llm-d-planner's table, if their 1,024 sequences were the default",
    ),
    Version(
        (0, 19),
        Span(7.5, 8.1, 9.7),
        _gib(0, 0.03, 0.08),
        (_gib(0.02, 0.13, 0.15), _gib(0.26, 0.55, 0.6)),
        "41,408 tokens of Llama-3.1-8B on an RTX 4090 (LLMServingSim's runs)",
    ),
    Version(
        (0, 22),
        Span(0, 1.5, 3.3),
        _gib(0, 0.03, 0.08),
        (_gib(0.02, 0.13, 0.15), _gib(0.26, 0.55, 0.6)),
        "vllm#48322 and #57926: the newer runner leaves parts of the sampler out of its profile",
    ),
)

# No version given: the span covers all of V1, and the likely value is that of the versions with the most evidence.
UNKNOWN = Version(
    (0, 0),
    Span(0, 4.75, 10.5),
    _gib(0, 0.03, 0.1),
    (_gib(0, 0.07, 0.2), _gib(0.1, 0.4, 0.8)),
    "no --vllm-version: the range covers all that were measured",
)


def version_of(text: str | None) -> Version:
    """The behaviour of a vLLM version such as `0.10.1`; None: not known.  ConfigError for anything else."""
    if text is None:
        return UNKNOWN
    parts = text.removeprefix("v").split(".")
    if len(parts) < 2 or not all(part.isdigit() for part in parts[:2]):
        raise ConfigError(f"--vllm-version must look like 0.10 or 0.19.1, not {text!r}")
    asked = (int(parts[0]), int(parts[1]))
    found = [each for each in VERSIONS if each.first <= asked]
    if not found:
        raise ConfigError(
            f"--vllm-version {text}: nothing is known before {VERSIONS[0].first[0]}.{VERSIONS[0].first[1]}"
        )
    return found[-1]


def activation(
    shape: Described, version: Version, tokens: int, rows: int, dtype_bytes: int, tensor_parallel: int
) -> Span:
    """Peak of the profile run in bytes on one rank.  Logits are gathered: the sampler's part is not divided."""
    forward = forward_bytes(shape, tokens, dtype_bytes, tensor_parallel)
    logits = 4 * shape.vocab_size * min(rows, tokens)
    sampler, base = version.sampler, version.base
    return Span(
        max(forward, sampler.low * logits) + base.low,
        max(forward, sampler.likely * logits) + base.likely,
        max(forward, sampler.high * logits) + base.high,
    )


@dataclass(frozen=True, slots=True)
class Defaults:
    """What vLLM takes for a setting that is not given, and why."""

    max_num_batched_tokens: int
    max_num_seqs: int
    utilization: float
    why: str


def defaults(device: Device | None, version: str | None, chunked: bool, max_model_len: int) -> Defaults:
    """For the OpenAI server.  Older versions had smaller steps; without chunks a step holds the longest prompt."""
    asked = version_of(version).first
    if asked == (0, 6):
        return Defaults(512 if chunked else max(max_model_len, 2048), 256, 0.9, "vLLM 0.6")
    large = device is not None and device.gets_large_defaults and asked not in ((0, 7),)
    tokens = 8192 if large else 2048
    if not chunked:
        tokens = max(tokens, max_model_len)
    utilization = 0.92 if asked >= (0, 22) else 0.9
    kind = "a card of 70 GiB or more" if large else "a card below 70 GiB, an A100, or one that is not known"
    return Defaults(tokens, 1024 if large and asked >= (0, 11) else 256, utilization, f"vLLM's server on {kind}")
