"""The `headrace` command: dispatches to one module a verb, and maps errors to exit codes.

Exit codes are those of `headrace.exit_codes`.  A verb is imported only when it is used, so `--help` stays fast and
torch stays out.

A verb's module has `app`, a cyclopts App named `headrace <verb>` whose default command returns None or an exit
code.  It may have `prepare(argv) -> argv` to accept spellings that cyclopts does not know.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

from headrace import exit_codes
from headrace.cli.streams import readers_may_leave
from headrace.errors import ConfigError, HeadraceError, InvalidRequest, InvariantError, LaunchError
from headrace.version import VERSION

# verb -> (module, what it does)
VERBS: dict[str, tuple[str, str]] = {
    "serve": ("headrace.cli.serve", "start the OpenAI-compatible server (takes vLLM's flags)"),
    "bench": ("headrace.cli.bench", "measure a running server (takes the flags of `vllm bench serve`)"),
    "run": (
        "headrace.cli.run",
        "run a campaign from a plan file: one server a cell, the same workload for each",
    ),
    "compare": ("headrace.cli.compare", "compare two measurements with intervals; a gate for continuous integration"),
    "capacity": ("headrace.cli.capacity", "find the largest request rate that keeps a service level"),
    "calibrate": ("headrace.cli.calibrate", "learn what a step costs, from step logs, campaigns or printed results"),
    "simulate": ("headrace.cli.simulate", "predict a plan's cells without running them"),
    "import": ("headrace.cli.import_", "read benchmark logs and result files of other tools into the same tables"),
    "explain-difference": (
        "headrace.cli.explain_difference",
        "why two tools' figures for one run differ: by definition, and by how much",
    ),
    "tune": (
        "headrace.cli.tune",
        "find a plan's best setting: simulate all cells, measure the few that may win",
    ),
    "fleet": (
        "headrace.cli.fleet",
        "how many replicas a rate needs under an objective, by simulation, and what they cost",
    ),
    "size": ("headrace.cli.size", "what a model needs and a device gives: memory, KV cache, legal settings, ceilings"),
    "report": (
        "headrace.cli.report",
        "write a campaign's report: one HTML file, its JSON twin, a summary here",
    ),
}


def _help() -> str:
    width = max(map(len, VERBS))
    rows = "\n".join(f"  {verb:<{width}}  {text}" for verb, (_, text) in VERBS.items())
    return (
        "usage: headrace VERB [OPTIONS]\n\n"
        "Serves language models and explains its own speed.\n\n"
        f"verbs:\n{rows}\n\n"
        "`headrace VERB --help` lists a verb's options; `headrace --version` prints the version.\n"
    )


def run(argv: Sequence[str]) -> int:
    """Run one command line and return its exit code.  Errors raised on purpose become one sentence on stderr."""
    with readers_may_leave():
        return _run(argv)


def _run(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("--help", "-h", "help"):
        print(_help(), end="")
        return exit_codes.OK if argv else exit_codes.USAGE
    if argv[0] in ("--version", "-V"):
        print(VERSION)
        return exit_codes.OK
    verb = argv[0]
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"; did you mean `{near[0]}`?" if near else ""
        print(f"headrace: there is no verb {verb!r}{hint} (verbs: {', '.join(VERBS)})", file=sys.stderr)
        return exit_codes.USAGE
    return _run_verb(verb, list(argv[1:]))


def _run_verb(verb: str, argv: list[str]) -> int:
    from cyclopts import CycloptsError, UnusedCliTokensError

    try:
        module = importlib.import_module(VERBS[verb][0])
        prepare = getattr(module, "prepare", None)
        tokens = prepare(argv) if prepare is not None else argv
        code = module.app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
        return exit_codes.OK if code is None else int(code)
    except UnusedCliTokensError as error:
        left = " ".join(error.unused_tokens or ())
        return _fail(verb, f"nothing takes {left!r}; `headrace {verb} --help` lists what there is", exit_codes.USAGE)
    except CycloptsError as error:
        return _fail(verb, " ".join(str(error).split()), exit_codes.USAGE)
    except (ConfigError, InvalidRequest) as error:
        return _fail(verb, str(error), exit_codes.USAGE)
    except LaunchError as error:
        if error.log_tail:
            print(error.log_tail.rstrip(), file=sys.stderr)
        return _fail(verb, str(error), exit_codes.ENVIRONMENT)
    except InvariantError:
        raise  # ours: the traceback is the bug report
    except HeadraceError as error:
        return _fail(verb, str(error), exit_codes.CHECK_FAILED)
    except KeyboardInterrupt:
        return _fail(verb, "interrupted", exit_codes.INTERRUPTED)
    except ModuleNotFoundError as error:
        if error.name and not error.name.startswith("headrace"):
            return _fail(
                verb,
                f"this needs the package {error.name!r}, which is not installed: pip install 'headrace[engine]'",
                exit_codes.ENVIRONMENT,
            )
        raise


def _fail(verb: str, message: str, code: int) -> int:
    print(f"headrace {verb}: {message}", file=sys.stderr)
    return code


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
