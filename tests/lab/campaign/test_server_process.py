"""A server as a process: dies with its lab, ends when told, is never mistaken for another."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.errors import LaunchError
from headrace.lab.campaign.launchers.classify import broken_rule, exited
from headrace.lab.campaign.launchers.process import (
    ProcessIdentity,
    ServerProcess,
    kill_by_nonce,
    log_tail,
    processes_with,
)
from headrace.sizing.rules import ServeSettings, violations

STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); signal.pause()"

PARENT = """
import sys
from pathlib import Path
from headrace.lab.campaign.launchers.process import ServerProcess
server = ServerProcess.start(sys.argv[2:], log=Path(sys.argv[1]), nonce="headrace-test-parent")
print(server.identity.pid, flush=True)
sys.stdin.read()
"""


def start(tmp_path: Path, *command: str, nonce: str) -> ServerProcess:
    return ServerProcess.start(command, log=tmp_path / "server.log", nonce=nonce)


def wait_for(log: Path, text: str) -> None:
    """Follows a log until it says `text` (a blocking read, not a poll)."""
    with subprocess.Popen(["tail", "-n", "+1", "-F", str(log)], stdout=subprocess.PIPE, text=True) as tail:
        assert tail.stdout is not None
        assert any(text in line for line in tail.stdout)
        tail.kill()


def test_a_server_dies_with_its_lab(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(tmp_path / "log"), sys.executable, "-c", STUBBORN]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as lab:
        assert lab.stdout is not None
        server = os.pidfd_open(int(lab.stdout.readline()))
        wait_for(tmp_path / "log", "ready")
        lab.kill()
    assert select.select([server], [], [], 10)[0], "the server outlived its lab"


def test_a_server_that_ignores_sigterm_is_killed_after_the_grace(tmp_path: Path) -> None:
    server = start(tmp_path, sys.executable, "-c", STUBBORN, nonce="headrace-test-stubborn")
    wait_for(server.log, "ready")
    assert server.identity.alive()
    assert server.stop(grace_s=0.1) == -signal.SIGKILL
    assert not server.identity.alive()


def test_a_stopped_server_is_killed_too(tmp_path: Path) -> None:
    server = start(tmp_path, sys.executable, "-c", STUBBORN, nonce="headrace-test-stopped")
    wait_for(server.log, "ready")
    os.kill(server.identity.pid, signal.SIGSTOP)
    server.kill()
    assert server.exit_code() == -signal.SIGKILL


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    server = start(tmp_path, "/no/such/program", nonce="headrace-test-none")
    wait_for(server.log, "cannot start")
    server.kill()
    assert server.exit_code() in (1, -signal.SIGKILL)  # it may still have been on its way out
    assert log_tail(server.log) == "guard: cannot start /no/such/program: No such file or directory"


def test_an_identity_is_of_one_process_only() -> None:
    me = ProcessIdentity.of(os.getpid())
    assert me.alive() and ProcessIdentity.from_json(json.loads(json.dumps(me.to_json()))) == me
    assert not ProcessIdentity(me.pid, me.start_ticks + 1, me.boot_id, me.host).alive()
    assert not ProcessIdentity(me.pid, me.start_ticks, "another boot", me.host).alive()


def test_a_nonce_is_matched_whole() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, env={"HEADRACE_LAB_NONCE": "headrace-test-12"}) as other:
        assert kill_by_nonce("headrace-test-1") == []
        assert other.poll() is None
        other.stdin.close()  # type: ignore[union-attr]


WITHOUT_A_MARK = """
import signal, subprocess, sys
worker = subprocess.Popen(["/bin/sleep", "600"], env={}, start_new_session=sys.argv[1] == "apart")
print("worker", worker.pid, flush=True)
signal.pause() if sys.argv[2] == "lives" else sys.exit(7)
"""


@pytest.mark.parametrize(("place", "parent"), [("beside", "lives"), ("apart", "lives"), ("beside", "ends")])
def test_workers_that_overwrote_their_environment_belong_to_the_server(place: str, parent: str, tmp_path: Path) -> None:
    """As vLLM's do, which set a title: known by their parents and by their group, also when the server has ended."""
    nonce = f"headrace-test-{place}-{parent}"
    server = start(tmp_path, sys.executable, "-c", WITHOUT_A_MARK, place, parent, nonce=nonce)
    wait_for(server.log, "worker")
    worker = int(server.log.read_text().split("worker")[1].split()[0])
    gone = os.pidfd_open(worker)
    if parent == "lives":
        assert {server.identity.pid, worker} <= set(processes_with(nonce))
    else:
        os.waitid(os.P_PID, server.identity.pid, os.WEXITED | os.WNOWAIT)
        assert server.exit_code() == 7
    server.kill()
    assert select.select([gone], [], [], 10)[0], "the worker outlived its server"


@pytest.mark.parametrize(
    ("code", "log", "kind"),
    [
        (1, "OSError: [Errno 98] error while attempting to bind: address already in use", "port"),
        (1, "OSError: [Errno 28] No space left on device", "disk"),
        (1, "RuntimeError: [enforce fail] . DefaultCPUAllocator: can't allocate memory", "oom"),
        (2, "headrace serve: R2: --max-num-batched-tokens is 16 but must be at least 64", "refused"),
        (-11, "Segmentation fault", "crash"),
        (3, "", "crash"),
    ],
)
def test_the_class_of_a_failure_comes_from_the_log(code: int, log: str, kind: str) -> None:
    error = exited(code, log, when="before it was ready")
    assert isinstance(error, LaunchError) and error.kind == kind
    assert str(error).endswith(log or "and left no log")


def test_every_refusal_in_a_log_is_traced_to_its_rule() -> None:
    """The server prints vLLM's wording; the words of the rules and the eyes of the classifier must not drift apart."""
    base = {"max_num_batched_tokens": 2048, "max_num_seqs": 256, "max_model_len": 1024}
    broken = [
        ServeSettings(**{**base, "max_model_len": 4096}, enable_chunked_prefill=False),
        ServeSettings(**{**base, "max_num_batched_tokens": 64}),
        ServeSettings(**{**base, "max_num_batched_tokens": 1000}, scheduler_version="v0", enable_prefix_caching=True),
        ServeSettings(**base, enable_chunked_prefill=False, max_num_partial_prefills=2),
        ServeSettings(**base, long_prefill_token_threshold=2000),
        ServeSettings(**base, max_long_partial_prefills=2),
        ServeSettings(**base, scheduling_policy="lifo"),
        ServeSettings(**base, scheduler_version="v0", kv_tokens=100),
        ServeSettings(**base, kv_tokens=100),
        ServeSettings(**base, kv_tokens=0),
    ]
    found = [violations(settings)[0] for settings in broken]
    assert [violation.rule for violation in found] == ["R1", "R2", "R4", "R5", "R6", "R6", "R8", "R9", "R10", "R11"]
    assert [broken_rule(f"ValueError: {violation.message}") for violation in found] == [v.rule for v in found]
    assert broken_rule("Uvicorn running on http://127.0.0.1") is None
