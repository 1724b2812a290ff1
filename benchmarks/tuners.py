"""Ways to search settings, on simulated truths that the tuner's own simulator cannot express.

    python benchmarks/tuners.py [--seeds N]

Each truth is a server whose step cost has a knee and a front end, each cell is off by a smooth factor of its own (some
4 %), and each run by 1 %.  An exhaustive sweep of the same truth says what the best is.  Printed: measured runs and
loss of the chosen cell against the best, over truths, objectives and seeds.  Optuna's TPE is compared when it is
installed (it is no dependency).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from headrace.core.state import SchedulerConfig
from headrace.lab.sim import FrontEnd, Server, StepCost, simulate
from headrace.lab.sim.demand import demand_from_spec
from headrace.lab.sim.slo import Slo
from headrace.lab.tuner.objective import Objective
from headrace.lab.tuner.search import search
from headrace.lab.tuner.surrogate import coordinates
from headrace.lab.tuner.world import Seen, SimulatedCells, metrics_of
from headrace.lab.workload.spec import WorkloadSpec

BUDGETS, SEATS = (64, 128, 256, 512, 1024, 2048, 4096, 8192), (8, 16, 32, 64, 128, 256)
TRUTHS = {
    "72B on an A100": StepCost(
        base_s=0.012, knots=((0, 0.0), (64, 0.06), (512, 0.38), (8192, 5.9)), kv_token_s=8.4e-7, pair_s=2e-9, row_s=2e-5
    ),
    "8B on a 4090": StepCost(
        base_s=0.004, floor_s=0.0145, token_s=6.7e-5, kv_token_s=2.1e-7, pair_s=6e-10, sequence_s=1e-5
    ),
    "a CPU": StepCost(
        base_s=0.004, knots=((0, 0.0), (16, 0.012), (256, 0.12), (8192, 3.6)), kv_token_s=1.5e-7, row_s=1e-4
    ),
}


@dataclass(frozen=True)
class World:
    """One truth with one objective."""

    name: str
    settings: list[dict[str, object]]
    configs: list[SchedulerConfig]
    scores: np.ndarray
    measure: Callable[[int], Seen]
    objective: Objective
    simulated: Callable[[], SimulatedCells]


def world(name: str, kind: str, seed: int, requests: int = 400) -> World:
    settings = [
        {"max_num_batched_tokens": budget, "max_num_seqs": seats, "policy": policy}
        for policy in ("v1", "v1-whole")
        for budget in BUDGETS
        for seats in SEATS
        if seats <= budget and (policy == "v1" or budget >= 2048)
    ]
    configs = [
        SchedulerConfig(
            policy=each["policy"],
            max_num_batched_tokens=each["max_num_batched_tokens"],
            max_num_seqs=each["max_num_seqs"],
            max_model_len=2048,
            block_size=16,
            num_blocks=6375,
        )
        for each in settings
    ]
    spec = WorkloadSpec.from_mapping(
        {"dataset": "conversation", "num_prompts": requests, "request_rate": 1.0, "seed": seed}
    )
    demand = demand_from_spec(spec)
    cost, front = TRUTHS[name], FrontEnd(delay_s=0.02, each_s=0.002)
    saturated = simulate(demand.draw(float("inf"), requests, seed), Server(configs[5], cost, front))
    rate = requests / saturated.duration_s
    if kind == "throughput":
        traffic, objective = demand.draw(float("inf"), requests, seed), Objective("output_throughput")
    elif kind == "bounded":
        traffic = demand.draw(float("inf"), requests, seed)
        objective = Objective("output_throughput", {"p99_tpot_ms": 8e3 / rate / 20, "mean_ttft_ms": 600e3 / rate})
    else:
        traffic = demand.draw(0.9 * rate, requests, seed)
        quiet = simulate(demand.draw(0.2 * rate, requests, seed), Server(configs[9], cost, front)).metrics()
        slo = Slo(ttft_ms=20 * quiet["median_ttft_ms"], tpot_ms=2.2 * quiet["median_tpot_ms"])
        objective = Objective("request_goodput", slo=slo)
    rng = np.random.default_rng([seed, 0x7077])
    where = coordinates(settings)
    distance = ((where[:, None] - where[None]) ** 2).sum(-1)
    own = np.exp(rng.multivariate_normal(np.zeros(len(where)), 0.04**2 * np.exp(-0.5 * distance / 2.0**2)))
    outcomes = [
        simulate(traffic, Server(config, _slower(cost, 1 / factor), front))
        for config, factor in zip(configs, own, strict=True)
    ]
    scores = np.array([objective.score(metrics_of(outcome, objective)) for outcome in outcomes])

    def measure(cell: int) -> Seen:
        noise = float(np.exp(rng.normal(0, 0.01)))
        metrics = {
            key: value * (1 / noise if key.endswith("throughput") else noise)
            for key, value in outcomes[cell].metrics().items()
        }
        metrics["request_goodput"] = scores[cell] / noise if kind == "goodput" else 0.0
        return Seen(metrics, traffic)

    return World(
        f"{name}, {kind}",
        settings,
        configs,
        scores,
        measure,
        objective,
        lambda: SimulatedCells(configs, traffic, objective),
    )


def _slower(cost: StepCost, factor: float) -> StepCost:
    values = {name: value * factor for name, value in cost.to_json().items() if name != "knots"}
    return StepCost(**values, knots=tuple((x, y * factor) for x, y in cost.knots))


def ours(place: World, most: int) -> tuple[int | None, int]:
    found = search(
        place.settings,
        place.measure,
        lambda seen: (place.objective.value(seen.metrics), place.objective.excess(seen.metrics)),
        place.simulated(),
        most=most,
    )
    return found.best, len(found.steps)


def at_random(place: World, most: int) -> tuple[int | None, int]:
    rng = np.random.default_rng(most)
    tried = rng.choice(len(place.settings), most, replace=False)
    scores = [place.objective.score(place.measure(int(cell)).metrics) for cell in tried]
    return int(tried[int(np.argmax(scores))]), most


def tpe(place: World, most: int) -> tuple[int | None, int]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=1, n_startup_trials=5))
    by_key = {
        (each["policy"], each["max_num_batched_tokens"], each["max_num_seqs"]): i
        for i, each in enumerate(place.settings)
    }
    seen: dict[int, float] = {}
    asked = 0
    while len(seen) < most and asked < 40 * most:
        asked += 1
        trial = study.ask()
        key = (
            trial.suggest_categorical("policy", ["v1", "v1-whole"]),
            BUDGETS[trial.suggest_int("budget", 0, len(BUDGETS) - 1)],
            SEATS[trial.suggest_int("seats", 0, len(SEATS) - 1)],
        )
        cell = by_key.get(key)
        if cell is not None and cell not in seen:
            seen[cell] = place.objective.score(place.measure(cell).metrics)
        study.tell(trial, seen[cell] if cell is not None else 0.0)
    return max(seen, key=lambda cell: seen[cell]), len(seen)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    seeds = parser.parse_args().seeds
    ways: dict[str, Callable[[World, int], tuple[int | None, int]]] = {"headrace": ours, "random": at_random}
    try:
        import optuna  # noqa: F401

        ways["Optuna TPE"] = tpe
    except ModuleNotFoundError:
        print("Optuna is not installed: left out")
    lost: dict[str, list[float]] = {}
    used: dict[str, list[int]] = {}
    for name in TRUTHS:
        for kind in ("throughput", "goodput", "bounded"):
            for seed in range(1, seeds + 1):
                place = world(name, kind, seed)
                best = float(place.scores.max())
                if best <= 0:
                    print(f"{place.name}: nothing keeps the bounds")
                    continue
                line = []
                start = time.perf_counter()
                cell, runs = ours(place, len(place.settings) // 4)
                spent = time.perf_counter() - start
                for label, way in (("headrace", None), *((k, w) for k, w in ways.items() if k != "headrace")):
                    for allowed in (runs,) if way is None else dict.fromkeys((runs, len(place.settings) // 4)):
                        chosen, count = (cell, runs) if way is None else way(place, allowed)
                        loss = 1 - place.scores[chosen] / best if chosen is not None else 1.0
                        key = label if way is None else f"{label}, {'as many runs' if allowed == runs else 'a quarter'}"
                        lost.setdefault(key, []).append(loss)
                        used.setdefault(key, []).append(count)
                        line.append(f"{key} {count} runs {100 * loss:.1f} %")
                print(
                    f"{place.name}, seed {seed} ({len(place.settings)} cells, {spent:.0f} s): " + "; ".join(line),
                    flush=True,
                )
    for key, losses in lost.items():
        near = sum(loss <= 0.02 for loss in losses)
        print(f"{key:<28} runs {np.mean(used[key]):5.1f}   loss mean {100 * np.mean(losses):5.2f} %", end="")
        print(f"   worst {100 * max(losses):5.2f} %   within 2 %: {near} of {len(losses)}")


if __name__ == "__main__":
    main()
