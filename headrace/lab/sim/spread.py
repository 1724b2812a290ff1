"""Many simulations at once: over the cores of this machine, or over machines with Ray where it is installed."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from headrace.errors import ConfigError, LaunchError

Task = TypeVar("Task")
Found = TypeVar("Found")
Spread = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]


@contextmanager
def spread_over(where: str = "cores") -> Iterator[Spread]:
    """A function `(work, tasks) -> results` in the order of the tasks; `work` must be a module's function.

    where   "here" (one after the other), "cores", a number of processes, "ray" (starts or finds a cluster), or
            "ray:ADDRESS"
    Raises ConfigError for anything else, and when Ray is asked for but not installed.
    """
    if where == "here":
        yield lambda work, tasks: [work(task) for task in tasks]
    elif where == "ray" or where.startswith("ray:"):
        with _ray(where.partition(":")[2]) as spread:
            yield spread
    else:
        count = _processes(where)
        # Forking a process that has threads (numpy's, a progress display's) may hang: start fresh ones.
        with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn")) as pool:
            yield lambda work, tasks: list(pool.map(work, tasks, chunksize=max(1, len(tasks) // (4 * count))))


def _processes(where: str) -> int:
    if where == "cores":
        return len(os.sched_getaffinity(0))
    if not where.isdigit() or not 1 <= int(where) <= 1024:
        raise ConfigError(f"simulations are spread over here, cores, a number of processes or ray, not {where!r}")
    return int(where)


@contextmanager
def _ray(address: str) -> Iterator[Spread]:
    try:
        import ray
    except ModuleNotFoundError:
        raise ConfigError("spreading over machines needs Ray: pip install 'headrace[ray]'") from None
    started = not ray.is_initialized()
    if started:
        try:
            ray.init(address=address or None, log_to_driver=False, include_dashboard=False, logging_level="ERROR")
        except Exception as error:  # many kinds, none of them ours
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise LaunchError(f"no Ray cluster at {address or 'this machine'}: {reason}", kind="not_ready") from None
    try:
        remote = ray.remote(_call)

        def spread(work: Callable[[Any], Any], tasks: Sequence[Any]) -> list[Any]:
            return list(ray.get([remote.remote(work, task) for task in tasks]))

        yield spread
    finally:
        if started:
            ray.shutdown()


def _call(work: Callable[[Task], Found], task: Task) -> Found:
    return work(task)
