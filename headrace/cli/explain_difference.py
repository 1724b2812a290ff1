"""`headrace explain-difference A B`: why two tools' figures for one run differ, in words and numbers."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from headrace.errors import ConfigError

if TYPE_CHECKING:
    from headrace.lab.findings.difference import Difference, Side

app = App(
    name="headrace explain-difference",
    help="Why do two results of one run differ?  By definition, and by how much.\n\n"
    "A and B are result files of vLLM, SGLang, GuideLLM, AIPerf or inference-perf, or directories that "
    "`headrace bench --out` wrote. Where one of them has raw records, they are counted again in the other's terms.",
    help_format="plaintext",
    version_flags=[],
)


@app.default
def explain_difference(
    a: Path,
    b: Path,
    /,
    *,
    a_as: Annotated[str | None, Parameter(help="Whose definitions A has; default: told from the file.")] = None,
    b_as: Annotated[str | None, Parameter(help="Whose definitions B has; default: told from the file.")] = None,
    json_: Annotated[bool, Parameter(name="--json", negative=(), help="Print an object instead of a table.")] = False,
) -> None:
    """Compare two results figure by figure."""
    from headrace.lab.findings.difference import differences, verdict

    first, second = _side(a, a_as), _side(b, b_as)
    if a.resolve() == b.resolve() and first.tool == second.tool:
        raise ConfigError(
            f"A and B are the same, both counted as {first.tool} does: give --a-as and --b-as two of the tools"
        )
    found = differences(first, second)
    if json_:
        rows = [{**asdict(one), "total": one.total} for one in found]
        body = {"a": _shown(first), "b": _shown(second), "differences": rows, "verdict": verdict(found, first, second)}
        sys.stdout.write(json.dumps(body, indent=1, ensure_ascii=False) + "\n")
        return
    print(f"A: {first.name}, as {first.tool} counts\nB: {second.name}, as {second.tool} counts\n")
    print(f"{'':<20} {'A':>12} {'B':>12} {'B to A':>9} {'defined':>9} {'left':>9}")
    for one in found:
        print(_row(one))
    reasons = [reason for one in found for reason in one.reasons]
    if reasons:
        print("\nBy definition:")
        for reason in dict.fromkeys(reasons):
            print(f"  - {reason}")
    print(f"\n{verdict(found, first, second)}")


def _row(one: Difference) -> str:
    values = [f"{value:>12.2f}" if value is not None else f"{'-':>12}" for value in (one.a, one.b)]
    shares = [
        f"{share:>+9.1%}" if share is not None else f"{'':>9}" for share in (one.total, one.by_definition, one.left)
    ]
    return " ".join([f"{one.label:<20}", *values, *shares]).rstrip()


def _shown(side: Side) -> dict[str, str]:
    return {"name": side.name, "tool": side.tool}


def _side(path: Path, name: str | None) -> Side:
    """One side from a file or a run's directory."""
    from headrace.lab.findings.difference import Side
    from headrace.lab.metrics.definitions import figures, tool
    from headrace.lab.records.foreign import read_paths
    from headrace.lab.records.store import is_done, read_run

    if not path.exists():
        raise ConfigError(f"{path} is not there")
    if path.is_dir() and is_done(path):
        manifest, records = read_run(path)
        duration_s = (manifest["end_ns"] - manifest["start_ns"]) / 1e9
        counted = tool(name or "vllm").name
        return Side(str(path), counted, figures(counted, records, duration_s).metrics(), records, duration_s)
    imported = read_paths([path])
    if len(imported.runs) != 1:
        reasons = "; ".join(reason for _, reason in imported.skipped[:3])
        raise ConfigError(
            f"{path} holds {len(imported.runs)} results, and one is needed" + (f" ({reasons})" if reasons else "")
        )
    (run,) = imported.runs
    told = run.settings.get("client") or ("sglang" if "total_output_tokens_retokenized" in run.metrics else "vllm")
    return Side(str(path), tool(name or str(told)).name, _own_names(run.metrics, str(told)))


# The importer files a figure under the key whose definition it has; here each tool speaks under its own names.
_OWN_NAMES = {"guidellm": {"itl": "tpot", "tpot": "tpot_with_ttft"}, "aiperf": {"itl": "tpot", "tpot": None}}


def _own_names(metrics: Mapping[str, float], client: str) -> dict[str, float]:
    renamed = _OWN_NAMES.get(client, {})
    found = {key: value for key, value in metrics.items() if not any(f"_{name}_ms" in key for name in renamed)}
    for own, filed in renamed.items():
        found |= {
            key.replace(f"_{filed}_ms", f"_{own}_ms"): value
            for key, value in metrics.items()
            if filed is not None and key.endswith(f"_{filed}_ms")
        }
    return found
