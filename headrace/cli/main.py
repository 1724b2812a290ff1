"""The `headrace` command: dispatches to one module a verb, and maps errors to exit codes.

Exit codes: 0 done, 1 a check failed, 2 bad usage or input, 3 the environment failed, 4 the run is not valid,
130 interrupted.  Verbs are imported only when they are used, so `--help` stays fast and torch stays out.
"""
