"""A lab that kills itself with SIGKILL at a chosen instant: `python doomed_lab.py OUT SEATS REPEATS INSTANT`.

Python announces every file that is opened, renamed or listed and every process that is started as an audit event; the
INSTANT-th of them is the last thing this lab does.  So every moment between two effects can be tried, without a clock.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from campaign_world import World

EVENTS = ("open", "os.rename", "os.mkdir", "os.listdir", "subprocess.Popen", "socket.connect", "fcntl.flock", "os.kill")


def main() -> None:
    out, seats, repeats, instant = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    world = World(out)
    import aiohttp  # noqa: F401  (imported before the count: only what the campaign does is of interest)

    import headrace.lab.client  # noqa: F401

    left = instant

    def doom(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in EVENTS and not str(arguments[0]).endswith((".py", ".pyc")):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(doom)
    study = world.run(seats, repeats=repeats)
    print(instant - left, file=sys.stderr)
    assert all(cell.runs for cell in study.cells)


if __name__ == "__main__":
    main()
