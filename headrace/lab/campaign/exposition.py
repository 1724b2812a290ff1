"""What a server says of itself under /metrics, in Prometheus' text: its settings, and counters before and after."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from typing import Any

Json = Any

# vLLM's `vllm:cache_config_info`, headrace's `headrace:config_info`.
_INFO = re.compile(r"^[a-zA-Z_:][\w:]*config_info\{(?P<labels>.*)\}\s", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{.*\})?\s+(?P<value>\S+)", re.MULTILINE)

_PREEMPTIONS = "vllm:num_preemptions_total"
_QUERIES, _HITS = "vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total"


def stated_settings(exposition: str) -> dict[str, Json]:
    """Settings that a server states (labels of its `*config_info`), under their own names, typed."""
    labels = [label for info in _INFO.finditer(exposition) for label in _LABEL.findall(info["labels"])]
    return {name: _typed(text) for name, text in labels}


def server_metrics(before: str, after: str) -> dict[str, float]:
    """What the server counted between two scrapes, the warm-up included: server_num_preemptions and
    server_prefix_cache_hit_rate (tokens found of tokens looked up, 0 to 1).  What it does not count is absent."""
    counted = _difference(_totals(before), _totals(after))
    found: dict[str, float] = {}
    if _PREEMPTIONS in counted:
        found["server_num_preemptions"] = counted[_PREEMPTIONS]
    if counted.get(_QUERIES, 0) > 0 and _HITS in counted:
        found["server_prefix_cache_hit_rate"] = counted[_HITS] / counted[_QUERIES]
    return found


def _totals(exposition: str) -> dict[str, float]:
    """Each of our counters, summed over its labels (a server may have several engines)."""
    totals: dict[str, float] = {}
    for sample in _SAMPLE.finditer(exposition):
        if sample["name"] in (_PREEMPTIONS, _QUERIES, _HITS):
            with contextlib.suppress(ValueError):
                totals[sample["name"]] = totals.get(sample["name"], 0.0) + float(sample["value"])
    return totals


def _difference(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Absent where one of them is: a counter whose beginning is unknown says nothing about the run."""
    return {name: after[name] - before[name] for name in after if name in before}


def _typed(text: str) -> Json:
    words: dict[str, Json] = {"True": True, "true": True, "False": False, "false": False, "None": None}
    if text in words:
        return words[text]
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text
