"""One tool call as a JSON object, read character by character: its name as soon as it is there, its arguments as
they come."""

from __future__ import annotations

import json
from collections.abc import Callable
from enum import Enum

ARGUMENTS = ("arguments", "parameters")
KEYS = frozenset(("name", "type", "id", "function", *ARGUMENTS))
_SPACE = " \t\r\n"
# What may stand outside strings; anything else (a tag, for example) ends the object early.
_PLAIN = frozenset("{}[]:,+-.0123456789eEtrufalsn" + _SPACE)


class _Expect(Enum):
    BEGIN = "begin"
    KEY = "key"
    IN_KEY = "in key"
    COLON = "colon"
    VALUE = "value"
    IN_VALUE = "in value"
    COMMA = "comma"


class CallScanner:
    """Reads `{"name": ..., "arguments": {...}}` (or "parameters").

    accepts   whether a name is one that may be called
    strict    a key that no call has, before the name, means that this is no call
    After `push`, look at `name` (None until certain), `take_arguments()`, and `done` or `broken`, which end it.
    """

    def __init__(self, accepts: Callable[[str], bool], *, strict: bool) -> None:
        self.name: str | None = None
        self.done = False
        self.broken = False
        self._accepts = accepts
        self._strict = strict
        self._expect = _Expect.BEGIN
        self._key = ""
        self._value: list[str] = []
        self._arguments: list[str] = []
        self._depth = 0
        self._in_string = self._escaped = self._streams = self._is_scalar = False

    def push(self, text: str) -> int:
        """Read up to the end of the object; returns how many characters belong to it."""
        for index, character in enumerate(text):
            if not self._read(character):
                self.broken = True
                return index
            if self.done:
                return index + 1
        return len(text)

    def take_arguments(self) -> str:
        """The arguments' own JSON text since the last call; nothing before the name is known."""
        if self.name is None:
            return ""
        text = "".join(self._arguments)
        self._arguments.clear()
        return text

    def _read(self, character: str) -> bool:
        """One character; False when no call looks like this."""
        expect = self._expect
        if expect is _Expect.IN_VALUE:
            return self._read_value(character)
        if expect is _Expect.IN_KEY:
            if not self._string_goes_on(character):
                self._expect = _Expect.COLON
                return self.name is not None or not self._strict or self._key in KEYS
            self._key += character
            return True
        if character in _SPACE:
            return True
        if expect is _Expect.BEGIN:
            self._expect = _Expect.KEY
            return character == "{"
        if expect is _Expect.KEY and character == '"':
            self._expect, self._key, self._in_string = _Expect.IN_KEY, "", True
            return True
        if expect is _Expect.COLON:
            self._expect = _Expect.VALUE
            return character == ":"
        if expect is _Expect.VALUE:
            self._expect, self._value = _Expect.IN_VALUE, []
            # Arguments are told while they come, unless they are a string that holds JSON: that is unpacked at its end.
            self._streams = self._key in ARGUMENTS and character != '"'
            self._is_scalar = character not in '"{['
            return character in '"{[-0123456789tfn' and self._read_value(character)
        if expect is _Expect.COMMA and character == ",":
            self._expect = _Expect.KEY
            return True
        self.done = character == "}" and expect in (_Expect.KEY, _Expect.COMMA)
        return self.done and self.name is not None

    def _read_value(self, character: str) -> bool:
        if self._in_string:
            goes_on = self._string_goes_on(character)
            self._keep(character)
            return goes_on or self._depth > 0 or self._end_value()
        if self._is_scalar and (character in ",}" or character in _SPACE):
            return self._end_value() and self._read(character)  # it ends where something else begins
        if character == '"':
            self._in_string = True
        elif character not in _PLAIN:
            return False
        self._keep(character)
        self._depth += (character in "{[") - (character in "}]")
        return self._depth > 0 or character not in "}]" or self._end_value()

    def _string_goes_on(self, character: str) -> bool:
        """False for the quote that closes the string."""
        if self._escaped:
            self._escaped = False
        elif character == "\\":
            self._escaped = True
        elif character == '"':
            self._in_string = False
            return False
        return True

    def _keep(self, character: str) -> None:
        (self._arguments if self._streams else self._value).append(character)

    def _end_value(self) -> bool:
        self._expect = _Expect.COMMA
        text = "".join(self._value)
        if self._key == "name":
            try:
                name = json.loads(text)
            except ValueError:
                return False
            if not isinstance(name, str) or not self._accepts(name):
                return False
            self.name = name
        elif self._key in ARGUMENTS and not self._streams:
            try:
                self._arguments.append(json.loads(text))
            except ValueError:
                return False
        return True
