"""The command line of each kind of server: pure functions of a target and one start of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.lab.campaign.launchers.environment import NONCE_VARIABLE
from headrace.lab.campaign.target import TargetTable

Json = Any

SERVE_COMMAND = (sys.executable, "-m", "headrace.cli.main", "serve")
# vLLM's name of a setting -> SGLang's, where both mean the same.
_SGLANG = {
    "block-size": "page-size",
    "gpu-memory-utilization": "mem-fraction-static",
    "max-model-len": "context-length",
    "max-num-batched-tokens": "chunked-prefill-size",
    "max-num-seqs": "max-running-requests",
    "seed": "random-seed",
    "tokenizer": "tokenizer-path",
}


@dataclass(frozen=True, slots=True)
class Start:
    """One start of a server: what it is told that no plan can know.

    name   what clients ask for
    nonce  a second name of the model where the server takes one: who does not know it is not ours
    """

    flags: Mapping[str, Json]
    port: int
    name: str
    nonce: str


def _headrace(target: TargetTable, start: Start) -> list[str]:
    model = [target.model] if target.model is not None else []
    flags = [word for flag, value in start.flags.items() for word in (f"--{flag}", _word(value))]
    return [*(target.command or SERVE_COMMAND), *model, *flags, *target.args, *_place(start)]


def _vllm(target: TargetTable, start: Start) -> list[str]:
    assert target.model is not None  # check_target
    program = target.command or ("vllm", "serve")
    return [*program, target.model, *_switches(start.flags), *target.args, *_place(start)]


def _sglang(target: TargetTable, start: Start) -> list[str]:
    assert target.model is not None
    program = target.command or (sys.executable, "-m", "sglang.launch_server")
    flags = {_SGLANG.get(flag, flag): value for flag, value in start.flags.items()}
    words = ["--disable-radix-cache"] if flags.pop("enable-prefix-caching", True) is False else []
    for flag, value in flags.items():
        # Its switches are off without their word, and there is no word for off.
        words += [f"--{flag}"] * bool(value) if isinstance(value, bool) else [f"--{flag}", str(value)]
    place = ["--host", "127.0.0.1", "--port", str(start.port), "--served-model-name", start.name]
    return [*program, "--model-path", target.model, *words, "--enable-metrics", *target.args, *place]


def _command(target: TargetTable, start: Start) -> list[str]:
    known = {"port": start.port, "model": target.model or "", "name": start.name, "nonce": start.nonce}
    return [*(word.format(**known) for word in target.command), *_switches(start.flags), *target.args]


def _docker(target: TargetTable, start: Start) -> list[str]:
    """The container ends with `docker rm`, see `container_end`: killing the client would leave it running."""
    assert target.model is not None and target.image is not None
    mount, model = [], target.model
    if Path(model).is_dir():
        mount, model = ["--volume", f"{Path(model).resolve()}:/model:ro"], "/model"
    words = [f"--env={name}={value}" for name, value in target.env.items()]
    return [
        *(target.command or ("docker",)),
        *("run", "--rm", "--name", start.nonce),
        # Published on the loopback address alone: docker publishes to the world where it is not told.
        *("--publish", f"127.0.0.1:{start.port}:{target.container_port}"),
        *(f"--env={NONCE_VARIABLE}={start.nonce}", *words, *mount, *target.docker_args, target.image),
        *("--model", model, *_switches(start.flags), *target.args),
        *("--host", "0.0.0.0", "--port", str(target.container_port), "--served-model-name", start.name, start.nonce),
    ]


LINES: dict[str, Callable[[TargetTable, Start], list[str]]] = {
    "headrace": _headrace,
    "vllm": _vllm,
    "sglang": _sglang,
    "command": _command,
    "docker": _docker,
}


def container_end(target: TargetTable, nonce: str) -> tuple[str, ...]:
    """The command that ends a target's container, whatever became of the client that started it; () without one."""
    return (*(target.command or ("docker",)), "rm", "--force", nonce) if target.kind == "docker" else ()


def _place(start: Start) -> tuple[str, ...]:
    return ("--host", "127.0.0.1", "--port", str(start.port), "--served-model-name", start.name, start.nonce)


def _switches(flags: Mapping[str, Json]) -> list[str]:
    """Flags as vLLM has them: a switch is --this or --no-this."""
    words: list[str] = []
    for flag, value in flags.items():
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", str(value)]
    return words


def _word(value: Json) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
