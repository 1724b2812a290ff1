"""The exit codes of every headrace command: what a script, or a lab that started the process, may rely on."""

from __future__ import annotations

OK = 0
CHECK_FAILED = 1  # it ran, and the answer is no
USAGE = 2  # a flag, a plan or an input file: ConfigError
ENVIRONMENT = 3  # no server, no port, no disk, a package that is not installed: LaunchError
INVALID_RUN = 4  # it was measured, and should not be believed; or nothing could be measured
INTERRUPTED = 130  # by Ctrl-C, as shells have it
