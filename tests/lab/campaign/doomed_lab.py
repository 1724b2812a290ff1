"""Labs that die by SIGKILL, or whose disk is full, at a chosen instant: `python doomed_lab.py OUT SEATS REPEATS`.

Python announces every file that is opened, renamed or listed and every process that is started as an audit event; the
N-th of them is the last thing that a lab does.  So every moment between two effects can be tried, without a clock.

Reads instants from standard input, one a line (0: live on; -N: nothing can be written from N on), forks a lab for each
(imports cost more than a campaign of this size), and answers with its exit status and the number of events that it
lived through.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from pathlib import Path

import uvloop  # noqa: F401  (what a campaign imports on its way is here before the count begins)
from campaign_world import World

import headrace.lab.client  # noqa: F401
from headrace.errors import LaunchError
from headrace.lab.campaign.provenance import code_version

EVENTS = ("open", "os.rename", "os.mkdir", "os.listdir", "subprocess.Popen", "socket.connect", "fcntl.flock", "os.kill")


DISK_FULL = 3  # the exit status of a lab that has said so
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def writes(event: str, arguments: tuple[object, ...], out: Path) -> bool:
    if not str(arguments[0]).startswith(str(out)):
        return False
    if event == "open":
        mode, flags = arguments[1], arguments[2]
        return mode not in ("r", "rb") if mode is not None else bool(int(str(flags)) & WRITING)
    return event == "os.mkdir"


def live(out: Path, seats: list[int], repeats: int, instant: int, answer: int) -> None:
    lived = 0

    def doom(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal lived
        if event in EVENTS and not str(arguments[0]).startswith("/proc"):
            lived += 1
            if lived == instant:
                os.kill(os.getpid(), signal.SIGKILL)
            if 0 < -instant <= lived and writes(event, arguments, out):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0]))

    sys.addaudithook(doom)
    try:
        study = World(out).run(seats, repeats=repeats)
    except LaunchError as error:
        os._exit(DISK_FULL if error.kind == "disk" else 1)
    os.write(answer, str(lived).encode())
    assert all(cell.runs for cell in study.cells)


def main() -> None:
    out, seats, repeats = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
    code_version()  # read once for all lives: an edit of the sources meanwhile would rightly make runs outdated
    for line in sys.stdin:
        heard, said = os.pipe()
        child = os.fork()
        if child == 0:
            live(out, seats, repeats, int(line), said)
            os._exit(0)
        os.close(said)
        lived = os.read(heard, 20).decode() or "0"
        os.close(heard)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), lived, flush=True)


if __name__ == "__main__":
    main()
