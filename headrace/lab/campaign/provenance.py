"""What a result depends on besides the plan: this code, the engine's libraries, the files of model and workload."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import headrace
from headrace.lab.campaign.files import checksum
from headrace.lab.campaign.launchers import probe
from headrace.lab.campaign.launchers.environment import recorded_variables
from headrace.lab.campaign.target import TargetTable
from headrace.lab.campaign.telemetry import Gpus
from headrace.lab.records.environment import describe_environment
from headrace.lab.workload.spec import WorkloadSpec
from headrace.version import VERSION

Json = Any

# Small files (configuration, tokenizer) are told apart by content; weights by name and size, which is what differs
# between two models and costs nothing.
_SMALL_FILE_BYTES = 1 << 20
_ENGINE_PACKAGES = ("vllm", "sglang", "torch", "transformers")
# How long a server may be silent changes no figure.
_HOW_STARTED = {"kind", "served_name", "command", "args", "url", "image", "docker_args"}
_SERVER_PACKAGES = ("torch", "tokenizers", "safetensors", "fastapi", "uvicorn")


# What only reads results: an edit there must not make a campaign measure again.  Everything else counts, new rooms
# included, since forgetting one here costs time and forgetting one there would mix results.
_READERS = (
    *("lab/metrics/", "lab/campaign/exposition.py", "lab/campaign/server_metrics.py", "lab/campaign/stated.py"),
    *("lab/campaign/result.py", "lab/campaign/study.py", "lab/compare/", "cli/compare.py"),
    *("lab/report/", "lab/findings/", "lab/records/foreign/", "cli/report.py", "cli/import_.py", "cli/import_table.py"),
)


@cache
def code_version() -> str:
    """The release, and a digest of the source that can change a measurement: an edited checkout is another version."""
    package = Path(headrace.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*")):
        name = path.relative_to(package).as_posix()
        if path.is_file() and path.suffix not in (".pyc", ".pyo") and not name.startswith(_READERS):
            digest.update(f"{name}\0{checksum(path)}\n".encode())
    return f"{VERSION}+source.{digest.hexdigest()[:16]}"


@cache
def server_version() -> str:
    """What headrace's own server runs on (read from the installed packages' metadata; nothing is imported)."""
    found = [f"python {platform.python_version()}"]
    for name in _SERVER_PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def files_digest(path: Path) -> str:
    """Tells two models, tokenizers or data sets apart; see _SMALL_FILE_BYTES.  "absent" when there is no such file."""
    if path.is_file():
        return checksum(path)
    if not path.is_dir():
        return "absent"
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file():
            size = file.stat().st_size
            content = checksum(file) if size <= _SMALL_FILE_BYTES else ""
            digest.update(f"{file.relative_to(path)}\0{size}\0{content}\n".encode())
    return digest.hexdigest()


def workload_hash(spec: WorkloadSpec) -> str:
    """Of the declaration and of the files that it names."""
    return digest_of(
        [
            spec.digest(),
            *(files_digest(Path(path)) if path else "" for path in (spec.dataset_path, spec.tokenizer)),
            *([files_digest(Path(spec.arrivals_path))] if spec.arrivals_path else []),
        ]
    )


def run_key(settings: Mapping[str, Json], *, workload: str, target: TargetTable, runs: int = 1) -> str:
    """What a finished run answers for: any difference here makes it another run.

    runs  measured on one server
    The built-in model is part of the code; another one is its files, or its name where there are none here.
    """
    model = target.model
    files = "" if model is None else files_digest(Path(model)) if Path(model).exists() else model
    how = target.model_dump(include=_HOW_STARTED)
    variables = {**recorded_variables(), **target.env}
    return digest_of([dict(settings), code_version(), engine_version(target), workload, files, how, runs, variables])


def engine_version(target: TargetTable) -> str:
    """What a target's server runs on, found without starting it; "unknown" where nothing tells."""
    if target.own:
        return server_version()
    if target.kind == "url":
        return _url_version(target.url or "")
    if target.kind == "docker":
        return _image_version(target)
    return _installed_beside(target.command[0] if target.command else target.kind)


def target_facts(target: TargetTable, gpus: Gpus | None) -> dict[str, Json]:
    """The facts of a run that are its target's."""
    facts: dict[str, Json] = {"server_version": engine_version(target)}
    if target.env:
        facts["server_environment"] = dict(target.env)
    return facts | ({"gpus": gpus.names()} if gpus is not None else {})


def _url_version(url: str) -> str:
    """What the server that runs there says; asked anew each time, since somebody may have restarted it."""
    return f"{probe.version(url) or 'unknown'} with {', '.join(probe.served_models(url)) or 'no model'}"


def _image_version(target: TargetTable) -> str:
    command = [*(target.command or ("docker",)), "image", "inspect", "--format", "{{.Id}}", target.image or ""]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return str(target.image)
    # An image that is not here yet has no identity but its name.
    return done.stdout.strip() if done.returncode == 0 else str(target.image)


@cache
def _installed_beside(program: str) -> str:
    """The engines' packages in the environment of a program, by the names of their metadata's directories."""
    found = shutil.which(program)
    if found is None:
        return "unknown"
    home = Path(found).parent.parent
    names = sorted(
        path.name.removesuffix(".dist-info").replace("-", " ")
        for path in home.glob("lib/python3*/site-packages/*.dist-info")
        if path.name.partition("-")[0] in _ENGINE_PACKAGES
    )
    return ", ".join(names) or f"{Path(found).name} {checksum(Path(found))[:16]}"


def run_facts() -> dict[str, Json]:
    """What a run is sealed with: the code, the machine, and the variables that its server inherits."""
    environment = describe_environment()
    kept = ("cpu_model", "cpus_usable", "memory_bytes", "system", "python", "git_revision")
    return {
        "tool": "headrace",
        "code_version": code_version(),
        "server_version": server_version(),
        **{key: environment[key] for key in kept if environment.get(key) is not None},
        "environment": recorded_variables(),
    }


def digest_of(values: Iterable[Json]) -> str:
    """SHA-256 of JSON-ready values."""
    return hashlib.sha256(json.dumps(list(values), sort_keys=True).encode()).hexdigest()
