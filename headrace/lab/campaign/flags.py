"""The server flags that a plan may set or sweep: vLLM's names, with the values that each accepts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Json = Any


@dataclass(frozen=True, slots=True)
class Flag:
    """One server flag.

    kind     "int", "float", "bool" or "text"
    least    smallest number accepted
    choices  words accepted; empty = any.  An int flag takes its words as well ("auto")
    """

    kind: str
    least: float | None = None
    choices: tuple[str, ...] = ()

    def accepts(self, value: Json) -> bool:
        if self.kind == "bool":
            return isinstance(value, bool)
        if isinstance(value, str):
            return value in self.choices or (self.kind == "text" and not self.choices and value != "")
        if self.kind == "text" or isinstance(value, bool):
            return False
        number = isinstance(value, int) or (self.kind == "float" and isinstance(value, float))
        return number and (self.least is None or value >= self.least)

    def accepted(self) -> str:
        """What it accepts, for a sentence."""
        if self.kind == "bool":
            return "true or false"
        words = ", ".join(f'"{word}"' for word in self.choices)
        if self.kind == "text":
            return f"one of {words}" if words else "a text"
        noun = "a whole number" if self.kind == "int" else "a number"
        bound = f" of at least {self.least:g}" if self.least is not None else ""
        return noun + bound + (f", or {words}" if words else "")


_SIZE = Flag("int", least=1)

SERVE_FLAGS: dict[str, Flag] = {
    "block-size": _SIZE,
    "dtype": Flag("text", choices=("auto", "float32", "bfloat16")),
    "enable-chunked-prefill": Flag("bool"),
    "enable-prefix-caching": Flag("bool"),
    "generation-config": Flag("text", choices=("auto", "vllm")),
    "gpu-memory-utilization": Flag("float", least=0),
    "load-format": Flag("text", choices=("auto", "safetensors", "dummy")),
    "long-prefill-token-threshold": Flag("int", least=0),
    "max-model-len": Flag("int", least=1, choices=("auto",)),
    "max-num-batched-tokens": _SIZE,
    "max-num-seqs": _SIZE,
    "num-gpu-blocks-override": _SIZE,
    "scheduler-version": Flag("text", choices=("v0", "v1")),
    "scheduling-policy": Flag("text", choices=("fcfs", "priority")),
    "seed": Flag("int", least=0),
    "tokenizer": Flag("text"),
}
