"""Values of a config.json, checked one by one: an error names the file, the key and the value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headrace.errors import ConfigError


def positive_int(config: Mapping[str, Any], key: str, source: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise ConfigError(f"{source}: key {key!r} is missing")
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{source}: {key} must be a positive integer, not {value!r}")
    return value


def positive_float(config: Mapping[str, Any], key: str, source: str, default: float | None = None) -> float:
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise ConfigError(f"{source}: key {key!r} is missing")
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ConfigError(f"{source}: {key} must be a positive number, not {value!r}")
    return float(value)


def one_of(config: Mapping[str, Any], key: str, source: str, accepted: tuple[Any, ...], default: Any) -> Any:
    """The value of `key`, which must be one of `accepted`; anything else is refused with the list."""
    value = config.get(key, default)
    if not any(value == each and type(value) is type(each) for each in accepted):
        raise ConfigError(f"{source}: {key} {value!r} is not supported; supported: {', '.join(map(repr, accepted))}")
    return value
