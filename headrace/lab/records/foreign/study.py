"""Imported runs -> a study: cells with names, and what may not be compared marked with its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from headrace.lab.records.comparable import SAME_WORKLOAD, shortfall
from headrace.lab.records.foreign.names import BUDGET, CHUNKED, IDENTITY, PROMPT_LENGTH, cell_names
from headrace.lab.records.foreign.repeats import group_repeats
from headrace.lab.records.results import Cell, CellStatus, Json, RunResult, Study

# Facts of one run, not of its configuration.
_PER_RUN = ("repeat", "date", "progress_elapsed_s", "seed")
# Mean prompt lengths this close may be one workload, drawn anew for every rate; a short and a long one are not.
_ONE_LENGTH = 0.10
# Settings that a campaign over budgets changes to make a cell legal.
_SUBSTITUTABLE = ("max_num_seqs", "max_model_len")


def study_from_runs(runs: Sequence[RunResult], name: str, title: str, facts: Mapping[str, Json] | None = None) -> Study:
    """Group runs into cells, name them (`on-256` over budgets), and mark those that served less than was asked
    (DEGRADED) or in which another setting moved together with the budget (SUBSTITUTED)."""
    runs = _with_prompt_lengths(runs)
    groups = group_repeats(runs, [_identity(run) for run in runs])
    names = cell_names(groups)
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
    return (*(repr(run.settings.get(key)) for key in IDENTITY), repr(run.settings.get("metadata")))


def _with_prompt_lengths(runs: Sequence[RunResult]) -> list[RunResult]:
    """The runs; where one model was given prompts of several mean lengths and its files do not say which, each of
    these runs gets its length as a setting.

    vLLM's result files state no lengths, so a short and a long workload would look like one configuration.
    """
    lengths: dict[str, list[tuple[float, int]]] = {}
    for index, run in enumerate(runs):
        unstated = "random_input_len" not in run.settings and run.settings.get("dataset") in (None, "random")
        tokens, served = run.metrics.get("total_input_tokens", 0), run.metrics.get("completed", 0)
        if unstated and 0 < served <= tokens and shortfall(run) is None:
            lengths.setdefault(repr(run.settings.get("model")), []).append((tokens / served, index))
    found = list(runs)
    for pairs in lengths.values():
        pairs.sort()
        if pairs[-1][0] <= (1 + _ONE_LENGTH) * pairs[0][0]:
            continue
        alike = pairs[0][0]
        for length, index in pairs:
            if length > (1 + SAME_WORKLOAD) * alike:
                alike = length
            settings = dict(found[index].settings)
            why = {**settings.pop("implied", {}), PROMPT_LENGTH: "total_input_tokens / completed, to 2 %"}
            found[index] = replace(found[index], settings={**settings, PROMPT_LENGTH: round(alike), "implied": why})
    return found


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
