"""The doors of docs/how-it-works.md: which room may import which, enforced on the source and on a live interpreter."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.cli.main import VERBS

PACKAGE = Path(__file__).resolve().parents[2] / "headrace"
STDLIB = sys.stdlib_module_names


def room(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else ""


def imports(path: Path, *, type_checking: bool = False) -> Iterator[str]:
    """Dotted names imported anywhere in a file (functions included), without `if TYPE_CHECKING` blocks."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped: set[ast.AST] = set()
    if not type_checking:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
                skipped.update(child for statement in node.body for child in ast.walk(statement))
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def starts(name: str, *prefixes: str) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def test_core_and_sizing_import_only_the_standard_library_and_errors() -> None:
    for path in sources():
        if room(path) not in ("core", "sizing"):
            continue
        for name in imports(path):
            own = starts(name, f"headrace.{room(path)}", "headrace.errors")
            assert own or name.split(".")[0] in STDLIB, f"{path.relative_to(PACKAGE)} imports {name}"


def test_core_knows_no_clock_randomness_or_io() -> None:
    forbidden = ("time", "random", "os", "io", "pathlib", "socket", "threading", "asyncio", "subprocess", "logging")
    for path in sources():
        if room(path) == "core":
            for name in imports(path):
                assert not starts(name, *forbidden), f"{path.relative_to(PACKAGE)} imports {name}"


def test_torch_lives_in_the_engine_only() -> None:
    for path in sources():
        if room(path) != "engine":
            for name in imports(path, type_checking=True):
                assert not starts(name, "torch", "safetensors"), f"{path.relative_to(PACKAGE)} imports {name}"


@pytest.mark.parametrize(
    ("here", "closed"),
    [
        ("lab", ("headrace.engine", "headrace.server", "headrace.cli")),
        ("server", ("headrace.engine.models", "headrace.engine.model_runner", "headrace.lab", "headrace.cli")),
        ("engine", ("headrace.server", "headrace.lab", "headrace.cli")),
    ],
)
def test_closed_doors(here: str, closed: tuple[str, ...]) -> None:
    for path in sources():
        if room(path) == here:
            for name in imports(path):
                assert not starts(name, *closed), f"{path.relative_to(PACKAGE)} imports {name}"


def test_server_sees_only_the_engines_front() -> None:
    for path in sources():
        if room(path) == "server":
            for name in imports(path):
                if starts(name, "headrace.engine"):
                    assert starts(name, "headrace.engine.async_engine", "headrace.engine.config"), (
                        f"{path.relative_to(PACKAGE)} imports {name}"
                    )


def test_report_computes_nothing_that_metrics_should() -> None:
    for path in sources():
        if path.is_relative_to(PACKAGE / "lab" / "report"):
            for name in imports(path):
                assert not starts(name, "scipy", "headrace.lab.metrics", "headrace.lab.client"), (
                    f"{path.relative_to(PACKAGE)} imports {name}"
                )


@pytest.mark.parametrize("banned", ["pickle", "cloudpickle", "marshal", "shelve"])
def test_nothing_unpickles(banned: str) -> None:
    for path in sources():
        assert not any(starts(name, banned) for name in imports(path)), path


def fresh_interpreter(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def test_lab_loads_no_torch_and_no_kernels() -> None:
    modules = "headrace.lab.campaign.execute, headrace.lab.report, headrace.lab.findings, headrace.lab.client"
    code = f"import sys, {modules}; print([m for m in sys.modules if m == 'torch' or m.startswith('headrace.engine')])"
    assert fresh_interpreter(code).strip() == "[]"


@pytest.mark.parametrize("verb", [*VERBS, ""])
def test_help_loads_no_torch(verb: str) -> None:
    code = (
        "import sys\nfrom headrace.cli.main import run\n"
        f"code = run({[verb, '--help'] if verb else ['--help']!r})\n"
        "assert code == 0, code\nprint('torch loaded:', 'torch' in sys.modules)"
    )
    assert fresh_interpreter(code).rstrip().endswith("torch loaded: False")
