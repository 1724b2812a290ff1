"""Client processes on many machines, through Ray: the same jobs, sent to wherever Ray has room.

Each machine has its own monotonic clock, so records come back on theirs and are moved to ours by the pairs of wall and
monotonic time that both noted; how far the wall clocks are apart is asked for, too.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from headrace.errors import ConfigError, LaunchError
from headrace.lab.client.shard import Job, Outcome, merge, moved, run_job, run_to_the_end

LEAD_NS = 3_000_000_000
_PINGS = 5


def wall_offset_ns(pings: Sequence[tuple[int, int, int]]) -> tuple[int, int]:
    """How far a remote wall clock is ahead of ours, and how sure that is, from (asked, theirs, answered) in ns.

    The fastest answer bounds the error by half of its way (Cristian's algorithm).
    """
    asked, theirs, answered = min(pings, key=lambda ping: ping[2] - ping[0])
    return theirs - (asked + answered) // 2, (answered - asked) // 2


def on_our_clock(outcome: Outcome, offset_ns: int, ours: tuple[int, int]) -> Outcome:
    """A remote outcome on our monotonic clock.

    offset_ns  how far the remote wall clock is ahead
    ours       one pair (wall, monotonic) of this machine
    """
    wall, mono = outcome.clock_pairs[0]
    return moved(outcome, (wall - offset_ns - ours[0]) + ours[1] - mono)


def run_on_ray(
    jobs: Sequence[Job], address: str, *, ray: Any = None, now_ns: Callable[[], int] = time.time_ns
) -> Outcome:
    """Run the jobs on the Ray cluster at `address` ("auto", or ray://host:port), an actor each.

    Raises ConfigError without the package and LaunchError when the cluster does not do it.
    """
    if ray is None:
        try:
            ray = importlib.import_module("ray")
        except ModuleNotFoundError:
            raise ConfigError("--ray needs the package ray: pip install 'headrace[ray]'") from None
    try:
        if not ray.is_initialized():
            ray.init(address=address, log_to_driver=False)
        actor = ray.remote(num_cpus=1)(RemoteClient)
        clients = [actor.remote() for _ in jobs]
        offsets = []
        for client in clients:
            pings = [_ping(ray, client, now_ns) for _ in range(_PINGS)]
            offsets.append(wall_offset_ns(pings)[0])
        ours = (now_ns(), time.perf_counter_ns())
        start_ns = ours[0] + LEAD_NS
        waiting = [
            client.run.remote(job.to_json(), start_ns + offset)
            for client, job, offset in zip(clients, jobs, offsets, strict=True)
        ]
        outcomes = [Outcome.from_json(text) for text in ray.get(waiting)]
    except (ConnectionError, TimeoutError, RuntimeError, OSError) as error:
        raise LaunchError(f"--ray {address}: {error}", kind="client") from None
    return merge([on_our_clock(one, offset, ours) for one, offset in zip(outcomes, offsets, strict=True)])


def _ping(ray: Any, client: Any, now_ns: Callable[[], int]) -> tuple[int, int, int]:
    asked = now_ns()
    theirs = ray.get(client.wall_ns.remote())
    return asked, int(theirs), now_ns()


class RemoteClient:
    """What runs on a machine of the cluster; headrace is installed there as well."""

    def wall_ns(self) -> int:
        return time.time_ns()

    def run(self, job: str, start_wall_ns: int) -> str:
        start_ns = time.perf_counter_ns() + (start_wall_ns - time.time_ns())
        outcome: Outcome = run_to_the_end(run_job(Job.from_json(job), start_ns=start_ns))
        return outcome.to_json()
