"""A load over several processes is the same load: every request once, on the schedule that one process would keep."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from scripted_server import Answer, ScriptedServer, Seen, model_server

from headrace.lab.client.processes import run_in_processes
from headrace.lab.client.ray_load import on_our_clock, run_on_ray, wall_offset_ns
from headrace.lab.client.shard import Item, Job, Outcome, Turn, merge, processes_for, split
from headrace.lab.records.schema import ChunkStamp, RequestRecord
from headrace.lab.records.store import read_run

MS = 1_000_000


def job(url: str = "http://127.0.0.1:1/v1/completions", count: int = 7, limit: int | None = None) -> Job:
    body = json.dumps({"prompt": "ab", "max_tokens": 2})
    return Job(url, {}, 30.0, limit, tuple(Item(i, body, 10 * MS * i) for i in range(count)))


@pytest.mark.parametrize(("limit", "processes", "limits"), [(None, 3, [None] * 3), (8, 3, [3, 3, 2]), (2, 5, [1, 1])])
def test_every_request_goes_to_one_process_and_the_limit_is_divided(
    limit: int | None, processes: int, limits: list[int | None]
) -> None:
    jobs = split(job(limit=limit), processes)
    assert sorted(item.index for one in jobs for item in one.items) == list(range(7))
    assert [one.max_concurrency for one in jobs] == limits
    assert [Job.from_json(one.to_json()) for one in jobs] == jobs


def test_a_session_stays_in_one_process() -> None:
    session = Item(0, "{}", 0, (Turn(1, "more", 4, 5 * MS),))
    jobs = split(Job("http://x", {}, 1.0, None, (session, Item(2, "{}", 0))), 2)
    assert [[item.index for item in one.items] for one in jobs] == [[0], [2]]
    assert Job.from_json(jobs[0].to_json()).items[0].turns == session.turns


@pytest.mark.parametrize(
    ("streams", "rate", "cpus", "wanted"),
    [(100, 10.0, 8, 1), (2000, 10.0, 8, 4), (0, 3000.0, 8, 6), (100_000, 10.0, 8, 7), (100_000, 10.0, 1, 1)],
)
def test_processes_grow_with_the_load_and_leave_a_core(streams: float, rate: float, cpus: int, wanted: int) -> None:
    assert processes_for(streams=streams, rate=rate, cpus=cpus) == wanted


def outcome(index: int, start: int) -> Outcome:
    record = RequestRecord(index, start, start, start, start + 2, start + 9, [ChunkStamp(start + 5, "content")])
    return Outcome([record], start, start + 9, [1], [0.5], False, [(1_000_000 + start, start)])


def test_outcomes_merge_in_the_order_of_the_workload() -> None:
    merged = merge([outcome(1, 200), outcome(0, 100)])
    assert [record.index for record in merged.records] == [0, 1]
    assert (merged.start_ns, merged.end_ns, merged.cpu_s) == (100, 209, [0.5, 0.5])
    assert Outcome.from_json(merged.to_json()) == merged


def test_two_processes_keep_one_schedule() -> None:
    with ScriptedServer() as server:
        found = run_in_processes(split(job(server.url + "/v1/completions"), 2), None)
    assert [record.index for record in found.records] == list(range(7)) and all(r.ok for r in found.records)
    assert [record.planned_ns - found.start_ns for record in found.records] == [10 * MS * i for i in range(7)]
    assert len(found.cpu_s) == 2 and not found.interrupted


def test_ctrl_c_reaches_every_process_and_keeps_what_they_measured(tmp_path: Path) -> None:
    hanging, answered = threading.Semaphore(0), threading.Semaphore(2)

    def answers_two_then_hangs(seen: Seen) -> Answer:
        if "/v1/completions" not in seen.path or answered.acquire(blocking=False):
            return model_server(seen)
        hanging.release()
        return Answer(hang=True)

    with ScriptedServer(answers_two_then_hangs) as server:
        command = [sys.executable, "-m", "headrace.cli.main", "bench", "--base-url", server.url, "--disable-tqdm"]
        command += ["--num-prompts", "4", "--scale", "0.1", "--client-processes", "2", "--out", str(tmp_path / "run")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert hanging.acquire(timeout=60) and hanging.acquire(timeout=60)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    lines = (tmp_path / "run" / "requests.jsonl").read_text().splitlines()
    assert sorted(str(json.loads(line)["error_class"]) for line in lines) == ["None", "None", "cancelled", "cancelled"]


def test_a_session_sends_its_turns_with_the_answers_that_came(tmp_path: Path) -> None:
    from headrace.cli.main import run

    flags = ["--dataset-name", "sessions", "--backend", "openai-chat", "--num-prompts", "6", "--session-turns", "3"]
    flags += ["--session-think-s", "0.01", "--random-input-len", "5", "--random-output-len", "2", "--disable-tqdm"]
    with ScriptedServer() as server:
        assert run(["bench", "--base-url", server.url, *flags, "--out", str(tmp_path / "run")]) == 0
        bodies = server.completions()
    roles = sorted("".join(message["role"][0] for message in body["messages"]) for body in bodies)
    assert roles == ["u", "u", "uau", "uau", "uauau", "uauau"]
    assert all(m["content"] == "yy" for body in bodies for m in body["messages"] if m["role"] == "assistant")
    _, records = read_run(tmp_path / "run")
    later = [record for record in records if record.index % 3]
    assert all(record.planned_ns > records[record.index - 1].done_ns for record in later)


def test_turns_after_a_failed_one_are_rows_too(tmp_path: Path) -> None:
    from headrace.cli.main import run

    def fails(seen: Seen) -> Answer:
        return Answer((), 500) if "chat" in seen.path else model_server(seen)

    flags = ["--dataset-name", "sessions", "--backend", "openai-chat", "--num-prompts", "3", "--session-turns", "3"]
    with ScriptedServer(fails) as server:
        assert run(["bench", "--base-url", server.url, *flags, "--disable-tqdm", "--out", str(tmp_path / "run")]) == 1
    _, records = read_run(tmp_path / "run")
    assert [record.error_class for record in records] == ["http_5xx", "cancelled", "cancelled"]
    assert "earlier turn" in str(records[2].error)


# Ray


def test_the_fastest_ping_tells_how_far_a_clock_is_ahead() -> None:
    assert wall_offset_ns([(0, 1500, 1000), (2000, 2600, 2200), (0, 9000, 4000)]) == (500, 100)


def test_records_of_another_machine_come_onto_our_clock() -> None:
    remote = outcome(0, 100)  # its wall clock said 1,000,100 when its monotonic one said 100, and is 40 ahead
    (record,) = on_our_clock(remote, 40, ours=(1_000_000, 5000)).records
    assert (record.planned_ns, record.chunks[0].t_ns) == (5060, 5065)


class FakeRay:
    """Ray's four calls, in this process."""

    def is_initialized(self) -> bool:
        return True

    def remote(self, **options: object) -> object:
        def decorate(cls: type) -> object:
            class Method:
                def __init__(self, bound: object) -> None:
                    self.remote = bound

            class Handle:
                def __init__(self) -> None:
                    actor = cls()
                    self.wall_ns, self.run = Method(actor.wall_ns), Method(actor.run)

            return type("Actor", (), {"remote": staticmethod(Handle)})

        return decorate

    def get(self, value: object) -> object:
        return value


def test_ray_runs_the_same_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.lab.client.ray_load.LEAD_NS", 1000)
    with ScriptedServer() as server:
        found = run_on_ray(split(job(server.url + "/v1/completions", 3), 2), "auto", ray=FakeRay())
    assert [record.index for record in found.records] == [0, 1, 2] and all(record.ok for record in found.records)


def test_ray_is_asked_for_only_when_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    from headrace.cli.main import run

    with ScriptedServer() as server:
        code = run(["bench", "--base-url", server.url, "--num-prompts", "2", "--scale", "0.1", "--ray", "auto"])
    assert code == 2 and "pip install 'headrace[ray]'" in capsys.readouterr().err
