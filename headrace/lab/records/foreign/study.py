"""Imported runs -> a study: cells with names, and what may not be compared marked with its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath

from headrace.lab.records.comparable import same_workload, shortfall
from headrace.lab.records.results import Cell, CellStatus, Json, RunResult, Study

BUDGET = "max_num_batched_tokens"
CHUNKED = "enable_chunked_prefill"
# Settings that tell two cells apart, in the order in which they appear in a cell's name.
_IDENTITY = (
    "model", "version", "backend", "dataset", "random_input_len", "random_output_len", "policy", CHUNKED, BUDGET,
    "max_num_seqs", "max_model_len", "enable_prefix_caching", "tensor_parallel_size", "quantization", "dtype",
    "gpu_memory_utilization", "enforce_eager", "num_prompts", "request_rate", "ramp_up_strategy",
    "ramp_up_start_rps", "ramp_up_end_rps", "burstiness", "max_concurrency", "profile",
)  # fmt: skip
_SHORT = {
    "request_rate": "rate", "max_concurrency": "concurrency", "num_prompts": "prompts", "max_num_seqs": "seqs",
    "max_model_len": "len", "random_input_len": "in", "random_output_len": "out", BUDGET: "budget",
    "enable_prefix_caching": "prefix-cache", "tensor_parallel_size": "tp",
}  # fmt: skip
# Facts of one run, not of its configuration.
_PER_RUN = ("repeat", "date", "progress_elapsed_s", "seed")
# Settings that a campaign over budgets changes to make a cell legal.
_SUBSTITUTABLE = ("max_num_seqs", "max_model_len")


def study_from_runs(runs: Sequence[RunResult], name: str, title: str, facts: Mapping[str, Json] | None = None) -> Study:
    """Group runs into cells, name them (`on-256` over budgets), and mark those that served less than was asked
    (DEGRADED) or in which another setting moved together with the budget (SUBSTITUTED)."""
    groups = _group(runs)
    names = _names([group[0] for group in groups])
    common = _common_values(groups)
    cells = []
    for cell_name, group in zip(names, groups, strict=True):
        settings = {key: value for key, value in group[0].settings.items() if key not in _PER_RUN}
        substituted = _substituted(settings, common)
        short = _shortfall(group)
        status, rule, reason = CellStatus.OK, None, None
        if all(run.metrics.get("completed") == 0 for run in group):
            status, reason = CellStatus.FAILED, "no request was completed"
        elif short is not None:
            status = CellStatus.DEGRADED
            rule, reason = _why_short(short, settings, groups)
        elif substituted:
            status = CellStatus.SUBSTITUTED
            rule, reason = _why_substituted(settings, substituted)
        cells.append(Cell(cell_name, settings, status, tuple(group), rule, reason, substituted))
    return Study(name, title, "imported", tuple(cells), dict(facts or {"source": "imported result files"}))


def _shortfall(group: Sequence[RunResult]) -> tuple[int, int] | None:
    short = [found for run in group if (found := shortfall(run)) is not None]
    return min(short) if short else None


def _identity(run: RunResult) -> tuple[str, ...]:
    return (*(repr(run.settings.get(key)) for key in _IDENTITY), repr(run.settings.get("metadata")))


def _group(runs: Sequence[RunResult]) -> list[list[RunResult]]:
    groups: dict[tuple[str, ...], list[list[RunResult]]] = {}
    for run in runs:
        alike = groups.setdefault(_identity(run), [])
        for group in alike:
            copied = next((index for index, other in enumerate(group) if _is_copy(run, other)), None)
            if copied is not None:
                note = f"the same figures stand in {run.source}: counted once"
                group[copied] = replace(group[copied], warnings=(*group[copied].warnings, note))
                break
            # different data sets must not be averaged as repeats
            if same_workload(group[0].metrics, run.metrics):
                group.append(run)
                break
        else:
            alike.append([run])
    return [group for alike in groups.values() for group in alike]


def _is_copy(run: RunResult, other: RunResult) -> bool:
    """The same run in two files, such as a sweep's run and its summary: no second measurement."""
    return run.metrics == other.metrics and all(
        run.settings.get(key) == other.settings.get(key) for key in ("repeat", "date")
    )


def _names(runs: Sequence[RunResult]) -> list[str]:
    varying = [key for key in _IDENTITY if len({repr(run.settings.get(key)) for run in runs}) > 1]
    over_budgets = len(runs) > 0 and all(BUDGET in run.settings and CHUNKED in run.settings for run in runs)
    names = []
    for run in runs:
        if over_budgets:
            name = f"{'on' if run.settings[CHUNKED] else 'off'}-{run.settings[BUDGET]}"
        else:
            name = "-".join(_part(key, run.settings[key]) for key in varying if key in run.settings)
        names.append(name or PurePath(run.source).name)
    if len(set(names)) < len(names):
        counts = Counter(names)
        names = [
            name if counts[name] == 1 else f"{name} ({PurePath(run.source).name})"
            for name, run in zip(names, runs, strict=True)
        ]
    seen: Counter[str] = Counter()
    unique = []
    for name in names:
        seen[name] += 1
        unique.append(name if seen[name] == 1 else f"{name} [{seen[name]}]")
    return unique


def _part(key: str, value: Json) -> str:
    if key == CHUNKED:
        return "on" if value else "off"
    if isinstance(value, bool):
        return f"{_SHORT.get(key, key.replace('_', '-'))}-{'on' if value else 'off'}"
    if isinstance(value, str):
        return f"rate-{value}" if key == "request_rate" else PurePath(value).name
    return f"{_SHORT.get(key, key.replace('_', '-'))}-{value:g}"


def _common_values(groups: Sequence[Sequence[RunResult]]) -> dict[str, int]:
    """The value that most cells share, for each setting that should have stayed the same; none over one budget."""
    if len({group[0].settings.get(BUDGET) for group in groups}) < 2:
        return {}
    common: dict[str, int] = {}
    for key in _SUBSTITUTABLE:
        counts = Counter(group[0].settings.get(key) for group in groups).most_common(2)
        value, count = counts[0]
        if isinstance(value, int) and count >= 2 and (len(counts) == 1 or counts[1][1] < count):
            common[key] = value
    return common


def _substituted(settings: Mapping[str, Json], common: Mapping[str, int]) -> dict[str, tuple[Json, Json]]:
    return {
        key: (wanted, settings[key]) for key, wanted in common.items() if key in settings and settings[key] != wanted
    }


def _why_substituted(settings: Mapping[str, Json], substituted: Mapping[str, tuple[Json, Json]]) -> tuple[str, str]:
    rules: list[str] = []
    sentences: list[str] = []
    budget = settings.get(BUDGET)
    for key, (wanted, used) in substituted.items():
        rule = "R9"
        why = f"the KV cache probably cannot hold one sequence of {wanted} tokens (the log does not say)"
        if key == "max_num_seqs":
            rule, why = "R2", f"a budget of {budget} tokens must be at least max_num_seqs"
        elif settings.get(CHUNKED) is False and isinstance(budget, int) and budget < wanted:
            rule, why = "R1", f"without chunked prefill a budget of {budget} tokens must be at least max_model_len"
        rules.append(rule)
        sentences.append(f"{key} {used} instead of {wanted}: {why}")
    return rules[0], "; ".join(sentences)


def _why_short(
    short: tuple[int, int], settings: Mapping[str, Json], groups: Sequence[Sequence[RunResult]]
) -> tuple[str | None, str]:
    served, asked = short
    what = f"{asked - served} of {asked} requests were not served"
    length = settings.get("max_model_len")
    if not isinstance(length, int):
        return None, f"{what}; the log does not say why"
    complete = [
        other
        for group in groups
        if _shortfall(group) is None and isinstance(other := group[0].settings.get("max_model_len"), int)
    ]
    if complete and min(complete) > length:
        return "R13", (
            f"{what}: longer than max_model_len {length}, which refuses them (every cell with at least "
            f"{min(complete)} served all)"
        )
    return None, f"{what}; the log does not say why (max_model_len is {length})"
