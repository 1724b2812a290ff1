"""What a plan measures: a kind of server, how it is started or where it is, and how long it may be silent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from headrace.errors import ConfigError
from headrace.lab.http import base_of

Json = Any

Kind = Literal["headrace", "vllm", "sglang", "command", "docker", "url"]
# The rules of `sizing/` are those that headrace's server enforces; another engine has the last word on its own.
OWN = "headrace"
# What `docker-args` and `args` would say twice.
_PORT_WORDS = ("-p", "--publish", "--name")


class Table(BaseModel):
    """A table of a plan: frozen, strict, with dashes where Python has underscores."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, alias_generator=lambda name: name.replace("_", "-")
    )


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


_Text = Annotated[str, Field(min_length=1)]
_Words = Annotated[tuple[str, ...], BeforeValidator(_tuple)]


class TargetTable(Table):
    """[target] and [targets.NAME].

    kind             headrace: our own server; vllm, sglang: theirs, as a process; command: any program; docker: an
                     image with vLLM's flags; url: a server that runs already, and is never started or stopped
    model            a directory or a name; left out: headrace's built-in demonstration model.  For url: the name to
                     ask for (left out: the first that it serves)
    served_name      the name that clients ask for (left out: the last part of `model`)
    command          the program before its flags.  For the kind command the whole line, with {port}, and {model},
                     {name} and {nonce} where it takes them; flags follow at its end
    args             more words for its command line, as they are
    env              environment variables of the server
    url              for the kind url: the server's root
    image, docker_args, container_port   for the kind docker
    health_path      answers 200 when the server is ready
    ready_timeout_s  how long a server may take until it is ready
    frozen_after_s   a running server that leaves /health, or every request, unanswered for so long is ended as frozen
    stop_grace_s     what a server may take to end by itself before it is killed
    """

    kind: Kind = "headrace"
    model: _Text | None = None
    served_name: _Text | None = None
    command: _Words = ()
    args: _Words = ()
    env: dict[str, str] = {}
    url: str | None = None
    image: str | None = None
    docker_args: _Words = ()
    container_port: Annotated[int, Field(ge=1, le=65535)] = 8000
    health_path: Annotated[str, Field(pattern="^/")] = "/health"
    ready_timeout_s: Annotated[float, Field(gt=0)] = 300.0
    frozen_after_s: Annotated[float, Field(gt=0)] = 120.0
    stop_grace_s: Annotated[float, Field(gt=0)] = 15.0

    @property
    def own(self) -> bool:
        """headrace's own server."""
        return self.kind == OWN

    @property
    def name_of_model(self) -> str | None:
        """What clients ask for; None where only the server knows."""
        if self.served_name is not None:
            return self.served_name
        return Path(self.model).name if self.model else None


def check_target(target: TargetTable, *, where: str) -> None:
    """Keys that belong together.  Raises ConfigError naming the key."""
    for key, kind in (("url", "url"), ("image", "docker")):
        value = getattr(target, key)
        if target.kind == kind and not value:
            raise ConfigError(f'{where} {key} is needed with kind = "{kind}"')
        if target.kind != kind and value:
            raise ConfigError(f'{where} {key} is only for kind = "{kind}", not "{target.kind}"')
    check = _CHECKS.get(target.kind)
    if check is not None:
        check(target, where)


def _check_url(target: TargetTable, where: str) -> None:
    try:
        base_of(target.url or "")
    except ConfigError as error:
        raise ConfigError(f"{where} url: {error}") from None
    for key in ("command", "args", "env", "docker_args"):
        if getattr(target, key):
            raise ConfigError(f"{where} {key.replace('_', '-')}: a server that runs already takes none")


def _check_command(target: TargetTable, where: str) -> None:
    if not any("{port}" in word for word in target.command):
        raise ConfigError(
            f'{where} command must have {{port}} in one of its words, as in ["serve-it", "--port", "{{port}}"]: '
            "the lab chooses a free one"
        )
    for word in target.command:
        try:
            word.format(port=1, model="", name="", nonce="")
        except (KeyError, IndexError, ValueError):
            raise ConfigError(
                f"{where} command: {word!r} may have {{port}}, {{model}}, {{name}} and {{nonce}} in braces, and no "
                "others (a brace itself is written twice)"
            ) from None


def _check_model(target: TargetTable, where: str) -> None:
    if target.model is None:
        raise ConfigError(f'{where} model is needed with kind = "{target.kind}"')


def _check_docker(target: TargetTable, where: str) -> None:
    _check_model(target, where)
    for word in target.docker_args:
        if word.partition("=")[0] in _PORT_WORDS:
            raise ConfigError(f"{where} docker-args: {word} is the lab's own, which chooses port and name")


_CHECKS: dict[str, Callable[[TargetTable, str], None]] = {
    "url": _check_url,
    "command": _check_command,
    "vllm": _check_model,
    "sglang": _check_model,
    "docker": _check_docker,
}
