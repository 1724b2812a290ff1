"""Values of flags as vLLM writes them."""

from __future__ import annotations

import re

from headrace.errors import ConfigError


def parse_tokens(flag: str, value: str | int) -> int:
    """An integer as vLLM reads it: 4096, 4k (= 4000), 4K (= 4096), 1.5m, 2G.  Raises ConfigError."""
    if isinstance(value, int):
        return value
    found = re.fullmatch(r"([+-]?\d+(?:\.\d+)?)([kKmMgGtT]?)", value.strip())
    if found is None:
        raise ConfigError(f"{flag} {value!r} is not a number; write it like 4096, 4k (4,000) or 4K (4,096)")
    number, unit = found.groups()
    base = 1024 if unit.isupper() else 1000
    scaled = float(number) * base ** " kmgt".index(unit.lower() or " ")
    if scaled != int(scaled) or (not unit and "." in number):
        raise ConfigError(f"{flag} {value!r} is not a whole number")
    return int(scaled)
