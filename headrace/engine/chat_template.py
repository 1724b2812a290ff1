"""A model's chat template, rendered in a sandbox with limits on time and size.

A template is a program from a model's author.  jinja2's sandbox keeps it from touching Python; it does not keep it from
looping for ever or from writing gigabytes, so loops check a deadline and the output is measured while it is written.
The environment is the one templates are written for: what transformers offers in `apply_chat_template`.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from headrace.errors import ConfigError, InvalidRequest

MAX_SECONDS = 5.0
MAX_CHARACTERS = 16 * 1024 * 1024
MAX_PRODUCT = 1_000_000  # of `*`: longest string or list, and `**` is not offered beyond small numbers


class ChatTemplate:
    """One compiled template.  Thread-safe.  Raises ConfigError when the text is no template."""

    def __init__(self, text: str, special_tokens: Mapping[str, str], *, max_seconds: float = MAX_SECONDS) -> None:
        self._special_tokens = dict(special_tokens)
        self._max_seconds = max_seconds
        self._environment = _Environment()
        try:
            self._template = self._environment.from_string(text)
            self._variables = frozenset(meta.find_undeclared_variables(self._environment.parse(text)))
        except (jinja2.TemplateError, RecursionError) as error:
            raise ConfigError(f"the chat template is not valid Jinja: {error}") from None

    def reads(self, variable: str) -> bool:
        """Whether the template looks at a variable by that name."""
        return variable in self._variables

    def render(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The conversation as one text.  Raises InvalidRequest with what the template refuses, or a limit."""
        given = {"tools": None, "documents": None, **self._special_tokens, **variables}
        pieces: list[str] = []
        size = 0
        with self._environment.deadline(self._max_seconds):
            try:
                for piece in self._template.generate(
                    messages=list(messages), add_generation_prompt=add_generation_prompt, **given
                ):
                    size += len(piece)
                    if size > MAX_CHARACTERS:
                        raise _Limit(f"it wrote more than {MAX_CHARACTERS:,} characters")
                    pieces.append(piece)
            except (jinja2.TemplateError, _Limit, ArithmeticError, LookupError, TypeError, ValueError) as error:
                reason = str(error) or type(error).__name__
            except (AttributeError, MemoryError, RecursionError) as error:
                reason = str(error) or type(error).__name__
            else:
                return "".join(pieces)
        raise InvalidRequest(f"The chat template refused the messages: {reason}", param="messages")


class _Limit(Exception):
    """The template used more time or space than it may."""


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("*", "**"))

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationTag])
        self.filters["tojson"] = _tojson
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        self._deadline = threading.local()

    def deadline(self, seconds: float) -> _Deadline:
        return _Deadline(self._deadline, seconds)

    def tick(self) -> None:
        """Called at the top of every loop and macro."""
        if time.monotonic() > self._deadline.at:
            raise _Limit("it ran for too long")

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for text, times in ((left, right), (right, left)):
                if isinstance(text, str | list | tuple) and isinstance(times, int) and len(text) * times > MAX_PRODUCT:
                    raise _Limit(f"a repetition of more than {MAX_PRODUCT:,}")
        elif isinstance(right, int | float) and abs(right) > 64:
            raise _Limit("a power above 64")
        return super().call_binop(context, operator, left, right)

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        # Filters and tests are bounded by their input; only loops and macros can go on, so those look at the clock.
        for node in source.find_all((nodes.For, nodes.Macro, nodes.CallBlock)):
            assert isinstance(node, nodes.For | nodes.Macro | nodes.CallBlock)
            check = nodes.Call(nodes.EnvironmentAttribute("tick"), [], [], None, None)
            node.body.insert(0, nodes.ExprStmt(check, lineno=node.lineno))
        return super()._generate(source, *args, **kwargs)


class _Deadline:
    """Sets a thread's deadline for the time of a `with`."""

    def __init__(self, place: threading.local, seconds: float) -> None:
        self._place, self._seconds = place, seconds

    def __enter__(self) -> None:
        self._place.at = time.monotonic() + self._seconds

    def __exit__(self, *_: object) -> None:
        self._place.at = float("inf")


class _GenerationTag(Extension):
    """`{% generation %} … {% endgeneration %}` marks what the assistant wrote (for training); here it only groups."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes <, >, & and ' for HTML; a prompt is no HTML.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
