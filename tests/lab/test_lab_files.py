"""The lab's one way to write a file: whole, durable, and never in the place of something else."""

from __future__ import annotations

import ast
import os
import stat
from pathlib import Path

import pytest

import headrace
from headrace.errors import ConfigError
from headrace.lab.files import write_durably, write_where_asked

PACKAGE = Path(headrace.__file__).parent


def test_a_crash_before_the_rename_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_durably(path, "größer\n")

    def crash(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError):
        write_durably(path, b"new")
    assert path.read_bytes() == "größer\n".encode() and os.listdir(tmp_path) == ["file"]
    with pytest.raises(ConfigError, match=r"^the table cannot be written: No space left on device$"):
        write_where_asked(path, "new", what="the table")


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    """As /dev/null and /dev/stdout, which root could replace by a file."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_durably(pipe, "text")
    assert os.read(reader, 100) == b"text" and stat.S_ISFIFO(pipe.stat().st_mode)
    os.close(reader)


def test_a_link_keeps_pointing_to_its_file(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("file")
    write_durably(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "text"


def test_a_place_that_cannot_be_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"^--json x cannot be written: "):
        write_where_asked(tmp_path / "file" / "x", "text", what="--json x")
    with pytest.raises(ConfigError, match=r"^here cannot be written: Is a directory$"):
        write_where_asked(tmp_path, "text", what="here")


def test_nothing_else_in_the_lab_or_the_cli_replaces_files() -> None:
    """A second writer would have a second opinion on what survives a crash."""
    calls = {
        f"{path.relative_to(PACKAGE)}: {ast.unparse(node.func)}"
        for room in ("lab", "cli")
        for path in (PACKAGE / room).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if ast.unparse(node.func) in ("os.replace", "os.rename") or node.func.attr == "write_text"
    }
    assert calls == {"lab/files.py: os.replace"}
