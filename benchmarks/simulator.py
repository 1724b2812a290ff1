"""How fast the simulator is, and what makes it so.

    python benchmarks/simulator.py

The conversation workload on the published campaign's device (fitted coefficients, 2,048 tokens, 256 seats), at rates
from low to all at once; best of five.  "metrics" adds all of vLLM's aggregates; "no jumps" takes every decode step by
itself; "core" is the loop over core.scheduler that both must agree with.

Then a capacity search: the largest rate under an objective for each of 136 cells (17 budgets, 4 numbers of seats, 2
policies; 8 probes of 1,000 requests and one run that saturates), on one core and spread over all.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from headrace.core.state import SchedulerConfig
from headrace.lab.sim import Server, StepCost, simulate, traffic_from_spec
from headrace.lab.sim.capacity import Capacity, capacities
from headrace.lab.sim.demand import demand_from_spec
from headrace.lab.sim.fast import applies, simulate_fast
from headrace.lab.sim.slo import Slo
from headrace.lab.sim.spread import spread_over
from headrace.lab.sim.stepwise import simulate_stepwise
from headrace.lab.workload.spec import WorkloadSpec

COST = StepCost(base_s=0.0125, token_s=7.32e-4, kv_token_s=8.38e-7)
SERVER = Server(SchedulerConfig(num_blocks=6375), COST)
SLO = Slo(ttft_ms=10_000, tpot_ms=250, share=0.95)
CELLS = [
    Server(SchedulerConfig(policy=policy, max_num_batched_tokens=budget, max_num_seqs=seats, num_blocks=6375), COST)
    for policy in ("v1", "v0-chunked")
    for budget in range(256, 4353, 256)
    for seats in (32, 64, 128, 256)
]


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
    search("here")
    search("cores")


def search(where: str) -> None:
    """Time one search over all cells, and say what it found."""
    demand = demand_from_spec(WorkloadSpec(num_prompts=1000))
    with spread_over(where) as spread:
        spread(abs, [0] * 64)  # processes are up and have imported what they need
        start = time.perf_counter()
        found = capacities(CELLS, demand, SLO, spread=spread)
        seconds = time.perf_counter() - start
    best: Capacity = max(found, key=lambda each: each.rate)
    config = CELLS[found.index(best)].config
    cores = "one core" if where == "here" else "all cores"
    print(
        f"capacity of {len(CELLS)} cells under {SLO}: {seconds:.1f} s on {cores}; "
        f"{min(each.rate for each in found):.2f} to {best.rate:.2f} requests/s, the most with {config.policy}, "
        f"{config.max_num_batched_tokens} tokens, {config.max_num_seqs} seats",
        flush=True,
    )


if __name__ == "__main__":
    main()
