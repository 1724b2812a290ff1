"""What the functions that describe a family share: checked reading of a configuration, and a layer made of parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headrace.errors import ConfigError
from headrace.sizing.config_values import positive_int
from headrace.sizing.mixers import Part
from headrace.sizing.modules import Layer, Module, outer_modules, vector

Config = Mapping[str, Any]
Built = tuple[tuple[Layer, ...], tuple[Module, ...]]


def layer_of(prefix: str, hidden: int, parts: tuple[Part, ...], norms: tuple[str, ...], *more: Module) -> Layer:
    return Layer(
        (
            *(module for part in parts for module in part.modules),
            *(vector(f"{prefix}.{name}", hidden) for name in norms),
            *more,
        ),
        tuple(cache for part in parts for cache in part.caches),
        inner=max(part.inner for part in parts),
        mixed=max(part.mixed for part in parts),
        score_width=sum(part.score_width for part in parts),
        state_bytes=sum(part.state_bytes for part in parts),
    )


TWO_NORMS = ("input_layernorm", "post_attention_layernorm")


def outer_of(config: Config, source: str, tied_by_default: bool = False) -> tuple[Module, ...]:
    tied = bool(config.get("tie_word_embeddings", tied_by_default))
    return outer_modules(positive_int(config, "vocab_size", source), positive_int(config, "hidden_size", source), tied)


class Reader:
    """Numbers of one configuration by name; every one must be there unless a default is given."""

    def __init__(self, config: Config, source: str) -> None:
        self.config, self.source = config, source

    def __call__(self, key: str, default: int | None = None) -> int:
        return positive_int(self.config, key, self.source, default)

    def kinds(self, key: str, count: int, default: list[Any] | None = None) -> list[Any]:
        """A list with one entry for each layer (longer lists also tell of draft layers)."""
        value = self.config.get(key, default)
        if not isinstance(value, list) or len(value) < count:
            raise ConfigError(f"{self.source}: {key} must list the kinds of all {count} layers")
        return value[:count]

    def zero_or(self, key: str) -> int:
        """A number that may be absent, null or 0, which mean the same."""
        return 0 if not self.config.get(key) else self(key)
