"""Spellings that people and published commands use, as the one form that cyclopts reads; flags of other tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from headrace.errors import ConfigError

ANY = None
TRUE, FALSE = "true", "false"
_ON, _OFF = ("true", "1", "yes", "on"), ("false", "0", "no", "off")


@dataclass(frozen=True, slots=True)
class Foreign:
    """A flag of another tool's command that is not acted upon.

    neutral   values that change nothing here (compared without case); ANY = every value
    why       the reason, of the acceptance as of the refusal
    switch    a flag without a value (`true` and `false` may follow)
    """

    neutral: tuple[str, ...] | None
    why: str
    switch: bool = False


def accept(flag: str, foreign: Foreign, value: str) -> str:
    """The line for the user when `value` changes nothing here.  Raises ConfigError otherwise, with the reason."""
    if foreign.neutral is ANY or value.lower() in foreign.neutral:
        return f"{flag} {value}: accepted, no effect: {foreign.why}"
    shown = flag if foreign.switch and value == TRUE else f"{flag} {value}"
    usable = ", ".join(each for each in foreign.neutral if each and not foreign.switch)
    ending = f"use {usable}, or leave it out" if usable else "leave it out"
    raise ConfigError(f"{shown} is not supported: {foreign.why}; {ending}")


def split(token: str) -> tuple[str, str, str]:
    """`--max_num=3` -> ("--max-num", "=", "3"): underscores in a flag's name are dashes."""
    name, equals, value = token.partition("=")
    return (name.replace("_", "-") if name.startswith("--") else name), equals, value


def set_apart(argv: Sequence[str], table: Mapping[str, Foreign]) -> tuple[list[str], list[str]]:
    """The tokens without the flags of `table`, their names in one form; and a line for each flag that was accepted.

    Raises ConfigError for a value that cannot be served.
    """
    tokens: list[str] = []
    accepted: list[str] = []
    rest = list(argv)
    while rest:
        token = rest.pop(0)
        name, equals, value = split(token)
        positive = name.replace("--no-", "--", 1) if name not in table else name
        foreign = table.get(positive) if name.startswith("-") else None
        if foreign is None or (name != positive and not foreign.switch):
            tokens.append(name + equals + value if name.startswith("--") else token)
            continue
        if foreign.switch:
            on = switch_value(name, equals, value, rest) == (positive == name)
            value = TRUE if on else FALSE
        elif not equals:
            if not rest:
                raise ConfigError(f"{name} needs a value")
            value = rest.pop(0)
        accepted.append(accept(positive, foreign, value))
    return tokens, accepted


def switch_value(name: str, equals: str, value: str, rest: list[str]) -> bool:
    """The value of a switch: behind `=`, or in the next word (taken out of `rest`) when that is one, else on."""
    if not equals:
        if not rest or rest[0].lower() not in _ON + _OFF:
            return True
        value = rest.pop(0)
    if value.lower() in _ON + _OFF:
        return value.lower() in _ON
    raise ConfigError(f"{name} {value!r} is neither true nor false")


def is_number(token: str) -> bool:
    try:
        float(token)
    except ValueError:
        return False
    return True


def bind_dash(argv: Sequence[str], flag: str) -> list[str]:
    """`--json -` as `--json=-`: the dash is standard output, and reads as an option otherwise."""
    tokens: list[str] = []
    for token in argv:
        if token == "-" and tokens[-1:] == [flag]:
            tokens[-1] = f"{flag}=-"
        else:
            tokens.append(token)
    return tokens
