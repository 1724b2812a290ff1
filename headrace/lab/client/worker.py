"""One client process: `python -m headrace.lab.client.worker JOB OUTCOME`, steered over its standard streams.

It says `ready`; it is told `go NS` (when to begin, on the clock that all processes of a machine share); it says how far
it is, a line a second; when told `stop`, or when its parent has gone, it ends early and writes what it has.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from pathlib import Path

from headrace.lab.client.load import Progress
from headrace.lab.client.shard import Job, Outcome, run_job, run_to_the_end
from headrace.lab.files import write_durably


def main() -> int:
    job_path, outcome_path = map(Path, sys.argv[1:3])
    job = Job.from_json(job_path.read_text(encoding="utf-8"))
    print("ready", flush=True)
    word, _, start = sys.stdin.readline().strip().partition(" ")
    if word != "go":
        return 1
    outcome: Outcome = run_to_the_end(_run(job, int(start)))
    write_durably(outcome_path, outcome.to_json())
    return 0


async def _run(job: Job, start_ns: int) -> Outcome:
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()

    def told() -> None:
        """`stop`, or the end of the stream: either way this run is over."""
        os.read(0, 1000)
        loop.remove_reader(0)
        task.cancel()

    loop.add_reader(0, told)
    try:
        return await run_job(job, start_ns=start_ns, progress=_say)
    finally:
        loop.remove_reader(0)


def _say(progress: Progress) -> None:
    with contextlib.suppress(OSError):  # the parent has gone; the end of the standard input says so, too
        print(progress.issued, progress.done, progress.failed, flush=True)


if __name__ == "__main__":
    sys.exit(main())
