"""Runs a command that must not outlive the lab: `python guard.py PARENT_PID COMMAND [ARGUMENT...]`.

A separate program, not `preexec_fn`: code between fork and exec can deadlock in a process with threads, and the lab
has some.  The kernel keeps the death signal across `exec`, so the server needs to know nothing of it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        sys.exit(f"guard: prctl failed: {os.strerror(ctypes.get_errno())}")
    # The parent may have died between the fork and the line above; then no signal will ever come.
    if os.getppid() != parent:
        sys.exit("guard: the lab is gone")
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"guard: cannot start {command[0]}: {error.strerror}")


if __name__ == "__main__":
    main()
