"""Calibration finds what a known server costs, from each kind of source, and says when it cannot tell."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from headrace.cli.main import run
from headrace.core.state import SchedulerConfig
from headrace.errors import ConfigError
from headrace.lab.findings import explain
from headrace.lab.metrics.result import run_result_from_records
from headrace.lab.records.results import Cell, Study, study_from_json, study_to_json
from headrace.lab.records.store import write_run
from headrace.lab.sim import FrontEnd, Server, StepCost, Traffic, simulate, traffic_from_spec
from headrace.lab.sim.calibration import load_calibration
from headrace.lab.sim.campaigns import read_measured, resimulated
from headrace.lab.sim.fit import Observation, fit_runs
from headrace.lab.sim.predict import Prediction, judge
from headrace.lab.sim.steplog import calibrate_on_steps, read_step_log
from headrace.lab.workload.spec import WorkloadSpec

TRUE = Server(SchedulerConfig(num_blocks=400, max_num_seqs=16), StepCost(0.0125, 7e-4, 8e-7), FrontEnd(delay_s=0.03))


def world(**changes: object) -> tuple[Traffic, Server]:
    spec = WorkloadSpec(num_prompts=60, scale=0.3, request_rate=6.0)
    return traffic_from_spec(spec), replace(TRUE, config=replace(TRUE.config, **changes))


def observation(traffic: Traffic, server: Server) -> Observation:
    return Observation("run", server.config, (traffic,), simulate(traffic, server).metrics())


def test_aggregates_of_two_runs_give_the_cost_back() -> None:
    runs = [observation(*world()), observation(*world(max_num_batched_tokens=64))]
    fit = fit_runs(runs, ("base_s", "token_s", "kv_token_s", "delay_s"))
    assert fit.cost.base_s == pytest.approx(0.0125, rel=0.15)
    assert fit.cost.token_s == pytest.approx(7e-4, rel=0.15)
    traffic, server = world(max_num_seqs=4)
    predicted = simulate(traffic, fit.server(server.config)).metrics()
    assert predicted["duration"] == pytest.approx(simulate(traffic, server).metrics()["duration"], rel=0.05)


def write_log(path: Path, traffic: Traffic, server: Server) -> None:
    """The step log that an engine with this cost would write."""
    outcome = simulate(traffic, server)
    names = ("prefill_tokens", "decodes", "kv_tokens", "pairs", "rows", "sequences", "running", "waiting")
    columns = {name: outcome.step(name).tolist() for name in names}
    lines = [json.dumps({"schema": "headrace.step-log/1", "monotonic_s": 0, "num_kv_blocks": 400, "block_size": 16})]
    starts, ends = outcome.step("start_ns").tolist(), outcome.ends_ns.tolist()
    for i in range(outcome.num_steps):
        row = {name: columns[name][i] for name in names if name != "decodes"}
        row |= {
            "step": i + 1,
            "start_s": starts[i] / 1e9,
            "end_s": ends[i] / 1e9,
            "decode_tokens": columns["decodes"][i],
        }
        lines.append(json.dumps({**row, "finished": 0}))
    path.write_text("\n".join(lines) + '\n{"step": 99, "star')


def test_a_step_log_gives_every_step_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    traffic, server = world()
    write_log(tmp_path / "steps.jsonl", traffic, server)
    assert run(["calibrate", str(tmp_path / "steps.jsonl"), "--out", str(tmp_path / "c.json")]) == 0
    assert "learned from step log" in capsys.readouterr().out
    learned = load_calibration(tmp_path / "c.json")
    assert learned.settings["num_blocks"] == 400
    again = simulate(traffic, Server(server.config, learned.fit.cost, server.front)).metrics()
    for key in ("duration", "mean_ttft_ms", "median_itl_ms"):
        assert again[key] == pytest.approx(simulate(traffic, server).metrics()[key], rel=0.01), key
    plan = tmp_path / "plan.toml"
    plan.write_text(
        'name = "p"\ntitle = "t"\n[serve]\nmax-model-len = 2048\nmax-num-seqs = 16\n[[sweep]]\n'
        "max-num-batched-tokens = [8, 64]\n[workload]\nnum-prompts = 40\nscale = 0.3\n"
    )
    args = ["simulate", str(plan), "--calibration", str(tmp_path / "c.json"), "--draws", "4", "--json", "-"]
    assert run([*args, "--goal", "mean_ttft_ms:1"]) == 0
    illegal, legal = json.loads(capsys.readouterr().out)
    assert illegal["rule"] == "R2"
    assert legal["predicted"]["completed"] == 40 and legal["goals"][0]["met"] is False


def test_slow_steps_are_part_of_the_time_that_is_learned(tmp_path: Path) -> None:
    """Steps are slow more often, and by more, than they are fast; all together they take what they took."""
    write_log(tmp_path / "steps.jsonl", *world())
    noise = np.random.default_rng(1)
    header, *lines, torn = (tmp_path / "steps.jsonl").read_text().splitlines()
    rows, now = [], 0.0
    for line in lines:
        row = json.loads(line)
        lasts = (row["end_s"] - row["start_s"]) * float(np.exp(noise.normal(0, 0.35)))
        rows.append(json.dumps({**row, "start_s": now, "end_s": now + lasts}))
        now += lasts
    (tmp_path / "steps.jsonl").write_text("\n".join([header, *rows, torn]))
    log = read_step_log(tmp_path / "steps.jsonl")
    cost = calibrate_on_steps(log, "noisy").fit.cost
    assert sum(map(cost.seconds, log.shapes)) == pytest.approx(log.seconds.sum(), rel=0.01)


def test_what_is_not_a_source_is_refused_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "old.jsonl").write_text('{"schema": "headrace.step-log/1"}\n{"step": 1, "prefill_tokens": 1}\n')
    assert run(["calibrate", str(tmp_path / "old.jsonl")]) == 2
    assert "kv_tokens" in capsys.readouterr().err
    assert run(["simulate", str(tmp_path / "none.toml")]) == 2
    with pytest.raises(ConfigError, match="no run"):
        fit_runs([])


def campaign(home: Path, budgets: tuple[int, ...], slower: tuple[float, ...] = (1.0,)) -> Study:
    """A measured campaign as its directory would hold it: here a simulated server plays the real one.

    slower   how many times as long a step takes in each of a cell's runs
    """
    cells = []
    for budget in budgets:
        settings = {
            "policy": "v1",
            "max_num_batched_tokens": budget,
            "max_num_seqs": 16,
            "max_model_len": 2048,
            "num_blocks": 400,
            "block_size": 16,
        }
        runs = []
        for number, factor in enumerate(slower, 1):
            traffic, server = world(max_num_batched_tokens=budget)
            cost = StepCost(**{name: factor * value for name, value in server.cost.to_json().items()})
            outcome = simulate(traffic, replace(server, cost=cost))
            source = f"cells/on-{budget}/run-{number}"
            manifest = {
                "start_ns": 0,
                "end_ns": round(outcome.duration_s * 1e9),
                "settings": {},
                "warnings": [],
                "verdict": {"level": "VALID", "reasons": []},
            }
            records = outcome.records()
            write_run(home / source / "client", manifest, records)
            runs.append(
                run_result_from_records(records, source=source, settings=settings, duration_s=outcome.duration_s)
            )
        cells.append(Cell(f"on-{budget}", settings, runs=tuple(runs)))
    return Study("c", "a campaign", "measured", tuple(cells))


def test_a_campaign_is_simulated_again_and_explained(tmp_path: Path) -> None:
    study = resimulated(campaign(tmp_path, (32, 64, 128, 256)), tmp_path)
    assert study.simulation["calibrated_on"] == ["on-32", "on-256"]
    told = {row["cell"]: row["metrics"] for row in study.simulation["cells"]}
    for name in ("on-64", "on-128"):
        for key in ("duration", "mean_ttft_ms", "median_tpot_ms"):
            figures = told[name][key]
            assert figures["simulated"] == pytest.approx(figures["measured"], rel=0.05), (name, key)
    again = study_from_json(study_to_json(study), source="study.json")
    finding = next(each for each in explain(again) if each.id == "simulation.agreement")
    assert "scheduling and the cost of a step explain this campaign" in finding.claim
    assert set(finding.cells) == {"on-64", "on-128"}


def test_every_run_of_a_cell_is_learned_from_and_compared(tmp_path: Path) -> None:
    """The machine was faster in the first run than in the second: what is predicted lies between them."""
    study = resimulated(campaign(tmp_path, (32, 64, 256), slower=(0.8, 1.2)), tmp_path)
    (row,) = [row for row in study.simulation["cells"] if not row["calibration"]]
    first, second = next(cell for cell in study.cells if cell.name == row["cell"]).runs
    for key in ("median_tpot_ms", "median_itl_ms"):
        figures = row["metrics"][key]
        assert figures["measured"] == pytest.approx((first.metrics[key] + second.metrics[key]) / 2)
        assert first.metrics[key] < 0.85 * figures["measured"]
        assert figures["simulated"] == pytest.approx(figures["measured"], rel=0.10), key


def test_a_run_with_quite_another_pool_is_left_out(tmp_path: Path) -> None:
    study = campaign(tmp_path, (64,), slower=(1.0, 1.0, 1.0))
    (cell,) = study.cells
    without = {key: value for key, value in cell.settings.items() if key != "num_blocks"}
    pools = (400, 410, 600)
    runs = tuple(
        replace(each, settings={**each.settings, "num_blocks": n}) for each, n in zip(cell.runs, pools, strict=True)
    )
    (measured,) = read_measured(replace(study, cells=(replace(cell, settings=without, runs=runs),)), tmp_path)
    assert measured.config.num_blocks == 400 and len(measured.runs) == 2


def test_a_campaign_of_one_cell_learns_from_half_of_its_requests(tmp_path: Path) -> None:
    study = resimulated(campaign(tmp_path, (64,)), tmp_path)
    assert study.simulation["halves"] is True
    figures = study.simulation["cells"][0]["metrics"]["mean_e2el_ms"]
    assert figures["simulated"] == pytest.approx(figures["measured"], rel=0.15)  # thirty requests are not many


def test_a_campaign_without_records_says_why_it_was_not_simulated(tmp_path: Path) -> None:
    study = resimulated(Study("c", "imported", "measured", (Cell("on-64", {}),)), tmp_path)
    assert study.simulation == {"reason": "not simulated: no cell has records that can be simulated"}
    assert not [finding for finding in explain(study) if finding.topic == "simulation"]


def test_a_goal_inside_the_interval_is_not_decided() -> None:
    prediction = Prediction(
        "cell", {"p99_ttft_ms": 1700.0, "mean_ttft_ms": 500.0}, {"p99_ttft_ms": (1400.0, 2100.0)}, 2000, 2000.0
    )
    undecided, met = judge(prediction, {"p99_ttft_ms": 2000.0, "mean_ttft_ms": 600.0})
    assert undecided.met is None and "between 1400 and 2100" in undecided.why
    assert met.met is True
    few = replace(prediction, served=200.0)
    assert judge(few, {"p99_ttft_ms": 9000.0})[0].met is None
    with pytest.raises(ConfigError, match="no metric"):
        judge(prediction, {"nonsense": 1.0})


def test_draws_of_coefficients_are_never_negative() -> None:
    fit = fit_runs([observation(*world())], ("base_s", "token_s", "kv_token_s"), rounds=3)
    assert all(min(cost.base_s, cost.token_s, cost.kv_token_s) >= 0 for cost, _ in fit.draws(20, seed=1))
    assert np.isfinite(fit.condition)
