"""Campaigns on a file system of random size that fills up: `unshare -rm python small_disk.py TIMES`.

A lab meets the end of the disk wherever that is (in its own files, the client's records, a server's log), says so and
ends; then the file system is made larger, and the same command finishes.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from campaign_world import World
from test_campaign_resume import REPEATS, RUNS, SEATS, finished, leftovers

from headrace.errors import LaunchError
from headrace.lab.records.results import CellStatus

SMALLEST, LARGEST, ENOUGH = 8, 180, "16m"  # KiB: a whole campaign of this size takes less than 190


def lab(out: Path) -> bool:
    """Whether a campaign came to its end; False when it said that the disk is full.  In a process of its own."""
    child = os.fork()
    if child == 0:
        try:
            World(out).run(SEATS, repeats=REPEATS)
        except LaunchError as error:
            os._exit(3 if error.kind == "disk" else 1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 3), f"exit status {status}"
    return status == 0


def main() -> None:
    draw, full = random.Random(7), 0
    with tempfile.TemporaryDirectory() as place:
        for number in range(int(sys.argv[1])):
            size = draw.randint(SMALLEST, LARGEST)
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", place], check=True)
            out = Path(place) / "campaign"
            ended = lab(out)
            full += not ended
            kept = finished(out)
            assert leftovers(out) == [], "a server outlived its lab"
            subprocess.run(["mount", "-o", f"remount,size={ENOUGH}", place], check=True)
            assert lab(out), f"number {number}, {size} KiB: did not resume"
            now = finished(out)
            assert {run: now[run] for run in kept} == kept, "a finished run changed"
            assert sorted(now) == [f"cells/{run}" for run in RUNS], f"number {number}, {size} KiB: {sorted(now)}"
            study = World(out).run(SEATS, repeats=REPEATS)
            bad = [cell for cell in study.cells if cell.status is not CellStatus.OK]
            assert not bad, f"number {number}, {size} KiB: {bad}"
            subprocess.run(["umount", place], check=True)
            print(f"{size} KiB: {'whole' if ended else 'full'} with {len(kept)} runs finished", flush=True)
    print(f"{full} of {sys.argv[1]} file systems of {SMALLEST} to {LARGEST} KiB were full; all campaigns were resumed")


if __name__ == "__main__":
    main()
