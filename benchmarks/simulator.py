"""How fast the simulator is, and what makes it so.

    python benchmarks/simulator.py

The conversation workload on the published campaign's device (fitted coefficients, 2,048 tokens, 256 seats), at rates
from low to all at once; best of five.  "metrics" adds all of vLLM's aggregates; "no jumps" takes every decode step by
itself; "core" is the loop over core.scheduler that both must agree with.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from headrace.core.state import SchedulerConfig
from headrace.lab.sim import Server, StepCost, simulate, traffic_from_spec
from headrace.lab.sim.fast import applies, simulate_fast
from headrace.lab.sim.stepwise import simulate_stepwise
from headrace.lab.workload.spec import WorkloadSpec

SERVER = Server(SchedulerConfig(num_blocks=6375), StepCost(base_s=0.0125, token_s=7.32e-4, kv_token_s=8.38e-7))


def best_s(call: Callable[[], object], repeats: int = 5) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    if not applies(SERVER):
        raise SystemExit("the fast path is not built: scripts/build-kernels")
    print(
        f"{'requests':>8} {'rate':>6} {'steps':>9} {'run ms':>9} {'+metrics':>9} {'no jumps':>9} {'req/s':>9}  core ms"
    )
    for count, rate in [(1000, 0.5), (1000, 1.0), (1000, 2.0), (1000, 2.4), (1000, math.inf), (20_000, 2.0)]:
        traffic = traffic_from_spec(WorkloadSpec(num_prompts=count, request_rate=rate))
        outcome = simulate(traffic, SERVER)
        run = best_s(lambda: simulate(traffic, SERVER))  # noqa: B023 - called at once
        metrics = best_s(lambda: outcome.metrics())  # noqa: B023
        slow = best_s(lambda: simulate_fast(traffic, SERVER, jumps=False))  # noqa: B023
        core = best_s(lambda: simulate_stepwise(traffic, SERVER), 1) if count == 1000 and rate >= 2 else math.nan  # noqa: B023
        print(
            f"{count:>8} {rate:>6g} {outcome.num_steps:>9} {1e3 * run:>9.2f} {1e3 * metrics:>9.2f} {1e3 * slow:>9.2f}"
            f" {count / (run + metrics):>9.0f}  {1e3 * core:.0f}"
        )


if __name__ == "__main__":
    main()
