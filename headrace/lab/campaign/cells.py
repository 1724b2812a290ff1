"""From a plan to its cells: every combination, named, with its effective settings and whether it is legal."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from headrace.errors import ConfigError
from headrace.lab.campaign.plan import DEFAULT, TARGET, Plan
from headrace.lab.campaign.target import TargetTable
from headrace.sizing.context import AUTO_MAX_MODEL_LEN
from headrace.sizing.rules import ServeSettings, Violation, errors, explain, violations

Json = Any

DEMO_MODEL = "headrace-demo"
_CHUNKED, _VERSION = True, "v1"  # what `headrace serve` and `vllm serve` do when the plan says nothing
_VLLM = ("vllm", "docker")

# Written as bare values in a cell's name, as the published rounds were: "on-64", "off-512".
_BARE = ("enable-chunked-prefill", "max-num-batched-tokens")

# The rules need these three; a server chooses defaults of its own for what a plan leaves out, and refuses by itself.
_NEEDED = ("max-num-batched-tokens", "max-num-seqs", "max-model-len")


@dataclass(frozen=True, slots=True)
class PlannedCell:
    """One combination of a plan.

    flags       flag -> value, everything that the server is started with, in vLLM's names
    settings    the same under the keys of RunResult.settings (underscores), with the policy's name
    target      what it is measured on
    violations  broken rules, warnings included; with an error among them the cell is never launched on headrace's
                server.  Another engine is asked: its version may have other rules
    """

    name: str
    flags: Mapping[str, Json]
    settings: Mapping[str, Json]
    target: TargetTable = field(default_factory=TargetTable)
    violations: tuple[Violation, ...] = field(default=())

    @property
    def legal(self) -> bool:
        return not self.target.own or not errors(self.violations)

    @property
    def rule(self) -> str | None:
        """The rules that forbid it, for example "R1" or "R1, R2"; None when it is legal."""
        return ", ".join(dict.fromkeys(violation.rule for violation in errors(self.violations))) or None

    @property
    def reason(self) -> str | None:
        """Why it is illegal: one sentence a broken rule."""
        return " ".join(map(explain, errors(self.violations))) or None

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(explain(violation) for violation in self.violations if violation.severity == "warning")

    @property
    def doubts(self) -> str | None:
        """Why another engine than headrace will probably refuse it, by vLLM's published rules; None without doubts."""
        broken = () if self.target.own else errors(self.violations)
        return f"will probably be refused: {' '.join(map(explain, broken))}" if broken else None


def cells(plan: Plan) -> tuple[PlannedCell, ...]:
    """The plan's cells in its order: table after table, the last key of a table changing fastest.

    Raises ConfigError when two combinations are the same, and for a baseline that is none of them.
    """
    targets = plan.used_targets()
    combinations = []
    for table in plan.sweep or ({},):
        for combination in _cross({TARGET: DEFAULT, **table}):
            combinations.append((combination.pop(TARGET), {**plan.serve, **combination}))
    keys = dict.fromkeys(itertools.chain(_BARE, *plan.sweep))
    varied = [key for key in keys if len({repr(flags.get(key)) for _, flags in combinations}) > 1]
    found: dict[str, PlannedCell] = {}
    for chosen, flags in combinations:
        target = targets[chosen]
        name = _name(flags, varied)
        if len(targets) > 1:
            name = f"{chosen}-{name}" if varied else chosen
        if name in found:
            raise ConfigError(f"the plan {plan.name!r} has the cell {name} twice; two [[sweep]] tables overlap")
        settings = _settings(target, flags)
        if len(targets) > 1 or not target.own:
            settings |= {"target": chosen if len(targets) > 1 else target.kind}
        found[name] = PlannedCell(name, flags, settings, target, _judge(target, flags))
    if plan.run.baseline is not None and plan.run.baseline not in found:
        raise ConfigError(f"[run] baseline must be one of the cells ({', '.join(found)}), not {plan.run.baseline!r}")
    return tuple(found.values())


def _cross(table: Mapping[str, Json]) -> list[dict[str, Json]]:
    axes = [value if isinstance(value, list) else [value] for value in table.values()]
    return [dict(zip(table, values, strict=True)) for values in itertools.product(*axes)]


def _name(flags: Mapping[str, Json], varied: Sequence[str]) -> str:
    """From what varies between the cells; a plan of one cell calls it "only"."""
    parts = []
    for key in varied:
        word = _word(flags.get(key))
        parts.append(word if key in _BARE else re.sub(r"^(enable|max-num|max)-", "", key) + f"={word}")
    # A name is also a directory's: what a file system may object to is spelled as its code.
    return re.sub(r"[^A-Za-z0-9._=-]", lambda match: f"%{ord(match[0]):02X}", "-".join(parts)) or "only"


def _word(value: Json) -> str:
    if value is None:
        return "default"
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


def serve_settings(flags: Mapping[str, Json]) -> ServeSettings | None:
    """What the rules judge; None when the plan leaves to the server what they need."""
    if any(key not in flags for key in _NEEDED):
        return None
    length = AUTO_MAX_MODEL_LEN if flags["max-model-len"] == "auto" else flags["max-model-len"]
    block_size = flags.get("block-size", 16)
    blocks = flags.get("num-gpu-blocks-override")
    if length == AUTO_MAX_MODEL_LEN and blocks is None:
        return None  # fitted by the server, which knows its memory
    return ServeSettings(
        max_num_batched_tokens=flags["max-num-batched-tokens"],
        max_num_seqs=flags["max-num-seqs"],
        max_model_len=length,
        enable_chunked_prefill=flags.get("enable-chunked-prefill", _CHUNKED),
        scheduler_version=flags.get("scheduler-version", _VERSION),
        block_size=block_size,
        enable_prefix_caching=flags.get("enable-prefix-caching", False),
        scheduling_policy=flags.get("scheduling-policy", "fcfs"),
        long_prefill_token_threshold=flags.get("long-prefill-token-threshold", 0),
        kv_tokens=None if blocks is None else blocks * block_size,
    )


def _judge(target: TargetTable, flags: Mapping[str, Json]) -> tuple[Violation, ...]:
    """By the rules of vLLM and headrace; what SGLang and unknown servers allow, nobody here knows."""
    settings = serve_settings(flags) if target.own or target.kind in _VLLM else None
    return () if settings is None else violations(settings)


def _settings(target: TargetTable, flags: Mapping[str, Json]) -> dict[str, Json]:
    values = {key.replace("-", "_"): value for key, value in flags.items()}
    if target.own or target.kind in _VLLM:
        chunked = values.setdefault("enable_chunked_prefill", _CHUNKED)
        version = values.setdefault("scheduler_version", _VERSION)
        values["policy"] = ServeSettings(1, 1, 1, enable_chunked_prefill=chunked, scheduler_version=version).policy
    values["model"] = target.model or (DEMO_MODEL if target.own else "as served")
    return values
