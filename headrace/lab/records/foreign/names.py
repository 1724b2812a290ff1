"""Names of imported cells: what varies in their settings, and where that is not enough, where they came from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath

from headrace.lab.records.foreign.places import labels
from headrace.lab.records.results import Json, RunResult

BUDGET = "max_num_batched_tokens"
CHUNKED = "enable_chunked_prefill"
# Mean prompt length in tokens, where a result file states neither the data set's lengths nor its name.
PROMPT_LENGTH = "mean_input_len"
# Settings that tell two cells apart, in the order in which they appear in a cell's name.
IDENTITY = (
    "model", "version", "client", "backend", "dataset", "random_input_len", PROMPT_LENGTH, "random_output_len",
    "policy",
    CHUNKED, BUDGET, "max_num_seqs", "max_model_len", "enable_prefix_caching", "tensor_parallel_size", "quantization",
    "dtype", "gpu_memory_utilization", "enforce_eager", "num_prompts", "request_rate", "ramp_up_strategy",
    "ramp_up_start_rps", "ramp_up_end_rps", "burstiness", "max_concurrency", "profile",
)  # fmt: skip
_SHORT = {
    "request_rate": "rate", "max_concurrency": "concurrency", "num_prompts": "prompts", "max_num_seqs": "seqs",
    "max_model_len": "len", "random_input_len": "in", PROMPT_LENGTH: "in", "random_output_len": "out",
    BUDGET: "budget", "enable_prefix_caching": "prefix-cache", "tensor_parallel_size": "tp",
}  # fmt: skip


def cell_names(groups: Sequence[Sequence[RunResult]]) -> list[str]:
    """One name a group, all different: "on-256" over budgets, else what varies, "rate-4-concurrency-8"; cells that
    would share a name get the shortest distinguishing part of their path, "rate-4 (a100)"."""
    runs = [group[0] for group in groups]
    varying = [key for key in IDENTITY if len({repr(run.settings.get(key)) for run in runs}) > 1]
    over_budgets = len(runs) > 0 and all(BUDGET in run.settings and CHUNKED in run.settings for run in runs)
    names = []
    for run in runs:
        if over_budgets:
            name = f"{'on' if run.settings[CHUNKED] else 'off'}-{run.settings[BUDGET]}"
        else:
            name = "-".join(_part(key, run.settings[key]) for key in varying if key in run.settings)
        names.append(name)
    counts = Counter(names)
    for shared in [name for name, count in counts.items() if count > 1]:
        where = [index for index, name in enumerate(names) if name == shared]
        parts = labels([runs[i].source for i in where], together=[len(groups[i]) > 1 for i in where])
        for index, part in zip(where, parts, strict=True):
            names[index] = f"{shared} ({part})" if shared else part
    names = [name or PurePath(run.source).name for name, run in zip(names, runs, strict=True)]
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
