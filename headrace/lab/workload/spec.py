"""What to send, and when: the declared workload of a run, the same for every cell of a campaign."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from headrace.errors import ConfigError

DATASETS = (
    "conversation", "random", "sharegpt", "sonnet", "shared-prefix", "sessions", "custom", "hf", "trace",
)  # fmt: skip
# Datasets that are read from `dataset_path` (for hf the name of a set on the hub), and those that may be.
FROM_FILE = ("sharegpt", "sonnet", "custom", "hf", "trace")
MAY_HAVE_FILE = (*FROM_FILE, "sessions")
# Real text and recorded lengths keep the lengths that they have.
FIXED_LENGTHS = ("sharegpt", "sonnet", "shared-prefix", "sessions", "custom", "hf")
ENDPOINTS = ("completions", "chat")
RAMPS = ("linear", "exponential")

# What vLLM's client waits before it gives a request up.
DEFAULT_TIMEOUT_S = 6 * 3600.0


@dataclass(frozen=True, slots=True)
class WorkloadSpec:
    """Samples plus arrivals, declared.  Everything a run sends follows from this and the target's tokenizer.

    dataset_name     conversation (built in, no download), random, sharegpt (a file), sonnet (a file of lines),
                     shared-prefix, sessions (several turns each; chat only), custom (JSON lines), hf (a set of the
                     Hugging Face hub), trace (recorded lengths and arrivals)
    dataset_path     the file; for hf the set's name; for sessions a file in the ShareGPT layout, or none
    num_prompts      requests to send
    seed             of samples, order and arrivals
    scale            multiplies prompt and output lengths (minimum 4 tokens each); conversation and random only
    request_rate     requests per second; math.inf sends all at once (with `max_concurrency`: a closed loop)
    burstiness       shape of the gamma distribution of the gaps: 1 is Poisson, below 1 burstier, math.inf constant
    ramp_up_strategy linear or exponential: from `ramp_up_start_rps` for the first request to `ramp_up_end_rps` for the
                     last; `request_rate` stays inf then
    arrival_rescale  stretch the schedule so that the last request lands on num_prompts / request_rate, as vLLM does;
                     the number of arrivals is then no longer Poisson
    rate_steps       "2:30,4:30": 2 requests/s for 30 s, then 4; the last rate goes on until all are sent
    arrivals_path    recorded arrivals (see traces.py) to replay, in place of a rate; a trace brings its own
    time_scale       multiplies recorded times: 0.5 replays twice as fast
    max_concurrency  the client's own limit of requests in flight
    ignore_eos       None: what the dataset needs (True for conversation and random, whose lengths are the point)
    temperature      None: not sent, the server's default
    endpoint         completions or chat
    tokenizer        a tokenizer.json or a directory that has one; None: the server's /tokenize
    warmup_requests  sent before the measured ones, with prompts that are never measured
    timeout_s        for one request, from sending it to its last byte
    extra_body       merged into every request body, last
    headers          sent with every request; never stored
    """

    dataset_name: str = "conversation"
    dataset_path: str | None = None
    num_prompts: int = 1000
    seed: int = 0
    scale: float = 1.0
    request_rate: float = math.inf
    burstiness: float = 1.0
    ramp_up_strategy: str | None = None
    ramp_up_start_rps: float | None = None
    ramp_up_end_rps: float | None = None
    arrival_rescale: bool = False
    rate_steps: str | None = None
    arrivals_path: str | None = None
    time_scale: float = 1.0
    max_concurrency: int | None = None
    ignore_eos: bool | None = None
    temperature: float | None = None
    endpoint: str = "completions"
    tokenizer: str | None = None
    warmup_requests: int = 0
    timeout_s: float = DEFAULT_TIMEOUT_S
    random_input_len: int = 1024
    random_output_len: int = 128
    random_range_ratio: float = 0.0
    random_prefix_len: int = 0
    sharegpt_output_len: int | None = None
    sonnet_input_len: int = 550
    sonnet_output_len: int = 150
    sonnet_prefix_len: int = 200
    num_prefixes: int = 10
    prefix_len: int = 256
    suffix_len: int = 256
    prefix_output_len: int = 128
    session_turns: int = 4
    session_think_s: float = 1.0
    custom_output_len: int | None = None
    hf_subset: str | None = None
    hf_split: str = "train"
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Raises ConfigError that names the key and what would be accepted."""
        _one_of("dataset_name", self.dataset_name, DATASETS)
        _one_of("endpoint", self.endpoint, ENDPOINTS)
        for key in (
            *("num_prompts", "random_input_len", "random_output_len", "sonnet_input_len", "sonnet_output_len"),
            *("num_prefixes", "prefix_len", "suffix_len", "prefix_output_len", "session_turns"),
        ):
            _check(key, getattr(self, key), int, lambda v: v >= 1, "a whole number of at least 1")
        for key in ("max_concurrency", "sharegpt_output_len", "custom_output_len"):
            if getattr(self, key) is not None:
                _check(key, getattr(self, key), int, lambda v: v >= 1, "a whole number of at least 1")
        for key in ("seed", "warmup_requests", "random_prefix_len", "sonnet_prefix_len"):
            _check(key, getattr(self, key), int, lambda v: v >= 0, "a whole number of at least 0")
        for key in ("request_rate", "burstiness"):
            _check(key, getattr(self, key), float, lambda v: v > 0, "a number above 0, or inf")
        for key in ("scale", "timeout_s", "time_scale"):
            _check(key, getattr(self, key), float, lambda v: 0 < v < math.inf, "a number above 0")
        _check("random_range_ratio", self.random_range_ratio, float, lambda v: 0 <= v < 1, "a number in [0, 1)")
        self._check_ramp()
        if self.temperature is not None:
            _check("temperature", self.temperature, float, lambda v: 0 <= v < math.inf, "a number of at least 0")
        _check("session_think_s", self.session_think_s, float, lambda v: 0 <= v < math.inf, "a number of at least 0")
        self._check_dataset()
        self._check_arrivals()

    def _check_dataset(self) -> None:
        name = self.dataset_name
        if name in FROM_FILE and not self.dataset_path:
            what = {"sharegpt": "a JSON file in the ShareGPT layout", "hf": "the name of a set on the Hugging Face hub"}
            raise ConfigError(f"dataset_path is needed for the dataset {name}: {what.get(name, 'a file')}")
        if name in FIXED_LENGTHS and self.scale != 1.0:
            kind = ", which is real text" if name == "sharegpt" else ""
            raise ConfigError(f"scale applies to the datasets conversation and random, not to {name}{kind}")
        if name not in MAY_HAVE_FILE and self.dataset_path:
            raise ConfigError(f"dataset_path is only for the dataset sharegpt, not {name}")
        if name == "sessions" and self.endpoint != "chat":
            raise ConfigError("the dataset sessions needs the endpoint chat: its turns are messages")

    def _check_arrivals(self) -> None:
        paced = [
            key
            for key, given in (
                ("request_rate", not math.isinf(self.request_rate)),
                ("ramp_up_strategy", self.ramp_up_strategy is not None),
                ("rate_steps", self.rate_steps is not None),
                ("arrivals_path", self.arrivals_path is not None),
            )
            if given
        ]
        if "rate_steps" in paced:
            parse_steps(self.rate_steps or "")
        if len(paced) > 1 and "ramp_up_strategy" not in paced:
            raise ConfigError(f"{' and '.join(paced)} both say when requests are due: give one")
        if len(paced) > 1 and set(paced) & {"rate_steps", "arrivals_path"}:
            raise ConfigError(f"{' and '.join(paced)} both say when requests are due: give one")
        if self.time_scale != 1.0 and not self.replayed:
            raise ConfigError("time_scale is for recorded arrivals: arrivals_path, or the dataset trace")
        if self.arrival_rescale and (self.rate_steps or self.replayed):
            raise ConfigError("arrival_rescale applies to a request_rate only")

    @property
    def replayed(self) -> bool:
        """Whether arrivals are recorded ones."""
        own = math.isinf(self.request_rate) and self.ramp_up_strategy is None and self.rate_steps is None
        return self.arrivals_path is not None or (self.dataset_name == "trace" and own)

    def _check_ramp(self) -> None:
        ends = ("ramp_up_start_rps", "ramp_up_end_rps")
        if self.ramp_up_strategy is None:
            if stray := [key for key in ends if getattr(self, key) is not None]:
                raise ConfigError(f"{stray[0]} needs a ramp_up_strategy: {' or '.join(RAMPS)}")
            return
        _one_of("ramp_up_strategy", self.ramp_up_strategy, RAMPS)
        for key in ends:
            _check(key, getattr(self, key), float, lambda v: 0 < v < math.inf, "a number above 0 with a ramp")
        if (self.ramp_up_start_rps or 0) > (self.ramp_up_end_rps or 0):
            raise ConfigError("ramp_up_start_rps must not be above ramp_up_end_rps")
        if not math.isinf(self.request_rate):
            raise ConfigError("request_rate must be inf with a ramp: the ramp says how many requests a second")
        if self.arrival_rescale:
            raise ConfigError("arrival_rescale does not apply to a ramp")

    @property
    def force_lengths(self) -> bool:
        """Whether requests carry `ignore_eos`, after the dataset's default."""
        real_text = ("sharegpt", "custom", "hf")
        return self.dataset_name not in real_text if self.ignore_eos is None else self.ignore_eos

    @property
    def closed_loop(self) -> bool:
        """A fixed number of users who each wait for their answer; its tails are not comparable with an open loop's."""
        at_once = math.isinf(self.request_rate) and self.ramp_up_strategy is None and self.rate_steps is None
        return at_once and not self.replayed and self.max_concurrency is not None

    @property
    def ramp_up(self) -> dict[str, Any]:
        """The ramp by its keys; empty without one."""
        keys = ("ramp_up_strategy", "ramp_up_start_rps", "ramp_up_end_rps")
        return {} if self.ramp_up_strategy is None else {key: getattr(self, key) for key in keys}

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any], *, where: str = "workload") -> WorkloadSpec:
        """Build one from a plan's table or a manifest.  Raises ConfigError naming the key.

        `request_rate` and `burstiness` may be the string "inf"; the key `dataset` is taken for `dataset_name`.
        """
        values = dict(data)
        if "dataset" in values and "dataset_name" not in values:
            values["dataset_name"] = values.pop("dataset")
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ConfigError(f"{where}: there is no key {unknown[0]!r} (keys: {', '.join(sorted(known))})")
        for key in ("request_rate", "burstiness"):
            if values.get(key) == "inf":
                values[key] = math.inf
        for key in ("extra_body", "headers"):
            if not isinstance(values.get(key, {}), Mapping):
                raise ConfigError(f"{where}: {key} must be a table of keys and values")
        try:
            return cls(**values)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None

    def to_json(self) -> dict[str, Any]:
        """JSON-ready values, read back by `from_mapping`.  Headers stay out: they may hold a key."""
        data = asdict(self)
        del data["headers"]
        # What is not asked for is not said, so that older declarations keep their digest.
        for key in _LATER:
            if data[key] == _DEFAULTS[key]:
                del data[key]
        for key in ("request_rate", "burstiness"):
            if math.isinf(data[key]):
                data[key] = "inf"
        return data

    def digest(self) -> str:
        """SHA-256 of the declaration: equal for two runs that were asked for the same workload."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()


# Keys that came after the first declarations were stored.
_LATER = (
    "ramp_up_strategy", "ramp_up_start_rps", "ramp_up_end_rps", "random_prefix_len", "rate_steps", "arrivals_path",
    "time_scale", "sonnet_input_len", "sonnet_output_len", "sonnet_prefix_len", "num_prefixes", "prefix_len",
    "suffix_len", "prefix_output_len", "session_turns", "session_think_s", "custom_output_len", "hf_subset", "hf_split",
)  # fmt: skip
_DEFAULTS = {f.name: f.default for f in fields(WorkloadSpec)}


def parse_steps(text: str) -> tuple[tuple[float, float], ...]:
    """ "2:30,4:30" -> ((2, 30), (4, 30)): requests per second, seconds.  Raises ConfigError."""
    steps = []
    for part in text.split(","):
        rate, _, length = part.partition(":")
        try:
            steps.append((float(rate), float(length)))
        except ValueError:
            steps.append((math.nan, math.nan))
    if not all(0 < rate < math.inf and 0 < length < math.inf for rate, length in steps):
        raise ConfigError(f"rate_steps must be RATE:SECONDS pairs such as 2:30,4:30, not {text!r}")
    return tuple(steps)


def _one_of(key: str, value: object, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise ConfigError(f"{key} must be one of {', '.join(accepted)}, not {value!r}")


def _check(key: str, value: Any, kind: type, holds: Any, accepted: str) -> None:
    right_type = isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
    if not right_type or math.isnan(value) or not holds(value):
        raise ConfigError(f"{key} must be {accepted}, not {value!r}")
