"""README's commands are typed as they stand: each is accepted, or the page is wrong."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

from headrace.cli import main as cli
from headrace.cli import serve
from headrace.engine.config import EngineArgs, resolve

ROOT = Path(__file__).resolve().parents[2]


def commands() -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    lines = [line.split(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("headrace ")]


def test_there_are_commands_for_every_verb() -> None:
    assert {command[0] for command in commands()} == set(cli.VERBS)


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_readme_command_parses(command: list[str]) -> None:
    module = importlib.import_module(cli.VERBS[command[0]][0])
    prepare = getattr(module, "prepare", list)
    module.app.parse_args(prepare(command[1:]), exit_on_error=False, print_error=False)


@pytest.mark.parametrize("command", [c for c in commands() if c[0] == "serve"], ids=" ".join)
def test_readme_serve_command_is_legal(command: list[str]) -> None:
    """With the built-in model in the place of `path/to/model`: no rule refuses the settings."""
    _, bound, *_ = serve.app.parse_args(serve.prepare(command[1:]), exit_on_error=False, print_error=False)
    known = {name: value for name, value in bound.arguments.items() if name in EngineArgs.__dataclass_fields__}
    known |= {"model": "demo"}
    config, _ = resolve(EngineArgs(**known), environ={}, free_memory_bytes=64 << 30)
    assert config.max_num_batched_tokens >= config.max_num_seqs
