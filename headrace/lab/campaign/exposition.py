"""What a server says of itself under /metrics, in Prometheus' text: names, labels, numbers."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Mapping
from typing import Any

Json = Any

# vLLM's `vllm:cache_config_info`, headrace's `headrace:config_info`.
_INFO = re.compile(r"^[a-zA-Z_:][\w:]*config_info\{(?P<labels>.*)\}\s", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{.*\})?\s+(?P<value>\S+)", re.MULTILINE)


def config_labels(exposition: str) -> dict[str, Json]:
    """Labels of a server's `*config_info`, under their own names, typed."""
    labels = [label for info in _INFO.finditer(exposition) for label in _LABEL.findall(info["labels"])]
    return {name: typed(text) for name, text in labels}


def totals(exposition: str, names: Collection[str], *, largest: Collection[str] = ()) -> dict[str, float]:
    """Each of `names`, summed over its labels (a server may have several engines); of those in `largest`, the
    largest."""
    found: dict[str, float] = {}
    for sample in _SAMPLE.finditer(exposition):
        name = sample["name"]
        if name in names:
            with contextlib.suppress(ValueError):
                value = float(sample["value"])
                known = found.get(name)
                if known is not None:
                    value = max(known, value) if name in largest else known + value
                found[name] = value
    return found


def rises(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """after - before; absent where one of them is: a counter whose beginning is unknown says nothing about a run."""
    return {name: after[name] - before[name] for name in after if name in before}


def typed(text: str) -> Json:
    """A label's text as the value that it was written from."""
    words: dict[str, Json] = {"True": True, "true": True, "False": False, "false": False, "None": None}
    if text in words:
        return words[text]
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text
