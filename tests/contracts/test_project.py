"""What the repository promises about itself: pins, sizes, and links that lead somewhere."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def tracked(pattern: str) -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z", pattern], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).exists()]


def test_every_dependency_is_pinned() -> None:
    pins = {
        line.split("==")[0].strip().lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    for requirement in wanted:
        name = re.split(r"[<>=;\[ ]", requirement)[0].lower().replace("_", "-")
        assert name in pins, f"{name} is not pinned in constraints.txt"


def test_torch_is_not_in_the_base_install() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert not any(name.startswith(("torch", "transformers")) for name in project["dependencies"])


def test_every_dependency_has_its_reason() -> None:
    reasons = (ROOT / "docs" / "dependencies.md").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]:
        name = re.split(r"[<>=;\[ ]", requirement)[0]
        assert f"`{name}`" in reasons, f"docs/dependencies.md does not say why {name} is there"


def test_modules_stay_small() -> None:
    long = {
        str(path.relative_to(ROOT)): n
        for path in tracked("headrace/*.py")
        if (n := len(path.read_text().splitlines())) > 650
    }
    assert not long


def test_links_in_the_documents_lead_somewhere() -> None:
    for page in tracked("*.md"):
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            if not re.match(r"[a-z]+:", target):
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


def test_the_documents_hold_no_placeholders() -> None:
    for page in tracked("*.md"):
        text = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.DOTALL)
        assert not re.search(r"\b(TODO|FIXME|XXX|[A-Z]+_(MINUTES|QUOTE|SECONDS))\b", text), page.relative_to(ROOT)
