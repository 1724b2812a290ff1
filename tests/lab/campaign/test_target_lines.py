"""The command line of each kind of server, and what a plan may say of a target."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.errors import ConfigError
from headrace.lab.campaign.cells import cells
from headrace.lab.campaign.launchers.lines import LINES, Start, container_end
from headrace.lab.campaign.launchers.start import _step_log
from headrace.lab.campaign.plan import parse_plan, read_plan
from headrace.lab.campaign.target import TargetTable

FLAGS = {"max-num-seqs": 64, "enable-prefix-caching": False, "enforce-eager": True, "dtype": "float32"}
START = Start(FLAGS, 8123, "small", "headrace-run-1")
PLACE = "--host 127.0.0.1 --port 8123 --served-model-name small headrace-run-1"


def line(start: Start = START, **keys: object) -> str:
    target = TargetTable(**{"model": "/models/small", **keys})  # type: ignore[arg-type]
    return " ".join(LINES[target.kind](target, start))


def test_vllm_has_a_word_for_off() -> None:
    assert line(kind="vllm", args=("--disable-log-stats",)) == (
        "vllm serve /models/small --max-num-seqs 64 --no-enable-prefix-caching --enforce-eager --dtype float32 "
        f"--disable-log-stats {PLACE}"
    )


def test_sglang_has_other_names_and_no_word_for_off() -> None:
    flags = {
        "max-num-seqs": 8,
        "max-num-batched-tokens": 512,
        "enable-prefix-caching": False,
        "enable-mixed-chunk": True,
    }
    assert line(Start(flags, 8123, "small", "n"), kind="sglang", command=("sgl",)) == (
        "sgl --model-path /models/small --disable-radix-cache --max-running-requests 8 --chunked-prefill-size 512 "
        "--enable-mixed-chunk --enable-metrics --host 127.0.0.1 --port 8123 --served-model-name small"
    )


def test_any_command_is_told_its_port() -> None:
    command = ("serve-it", "--listen=127.0.0.1:{port}", "--weights", "{model}", "--as", "{name}", "--also", "{nonce}")
    assert line(Start({"threads": 2}, 8123, "small", "n"), kind="command", command=command) == (
        "serve-it --listen=127.0.0.1:8123 --weights /models/small --as small --also n --threads 2"
    )


def test_docker_publishes_on_loopback_mounts_the_model_and_is_ended_by_name(tmp_path: Path) -> None:
    target = TargetTable(
        kind="docker",
        model=str(tmp_path),
        image="vllm/vllm-openai:v0.11.0",
        env={"VLLM_USE_V1": "1"},
        **{"docker-args": ["--gpus", "all"]},  # type: ignore[arg-type]
    )
    start = Start({"max-num-seqs": 64}, 8123, "small", "headrace-run-1")
    assert " ".join(LINES["docker"](target, start)) == (
        "docker run --rm --name headrace-run-1 --publish 127.0.0.1:8123:8000 --env=HEADRACE_LAB_NONCE=headrace-run-1 "
        f"--env=VLLM_USE_V1=1 --volume {tmp_path}:/model:ro --gpus all vllm/vllm-openai:v0.11.0 --model /model "
        "--max-num-seqs 64 --host 0.0.0.0 --port 8000 --served-model-name small headrace-run-1"
    )
    assert container_end(target, "headrace-run-1") == ("docker", "rm", "--force", "headrace-run-1")
    assert container_end(TargetTable(), "headrace-run-1") == ()


HEAD = 'name = "n"\ntitle = "t"\n'
VLLM = '[targets.a]\nkind = "vllm"\nmodel = "a/b"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[target]\nkind = "vllm"', '[target] model is needed with kind = "vllm"'),
        ('[target]\nkind = "url"', '[target] url is needed with kind = "url"'),
        ('[target]\nurl = "http://127.0.0.1:1"', '[target] url is only for kind = "url", not "headrace"'),
        ('[target]\nkind = "url"\nurl = "ftp://there"', "must begin with http:// or https://"),
        ('[target]\nkind = "url"\nurl = "http://there"\nenv = { A = "1" }', "a server that runs already takes none"),
        ('[target]\nkind = "command"\ncommand = ["serve"]', "must have {port} in one of its words"),
        ('[target]\nkind = "command"\ncommand = ["{port}", "{host}"]', "'{host}' may have {port}, {model}, {name}"),
        ('[target]\nkind = "llama"', "[target] kind must be one of"),
        ('[targets.a]\nkind = "vllm"\nmodel = "a/b"', "[targets.a] is never measured; add target = [\"a\"]"),
        ('[[sweep]]\ntarget = "a"', "there is no [targets.a] (default)"),
        ('[[sweep]]\ntarget = [1]', "target must be names of [targets.NAME] tables"),
        ('[targets.a]\nkimd = "vllm"', "[targets.a] has no key 'kimd'; did you mean 'kind'?"),
        (VLLM + '[[sweep]]\ntarget = ["a", "default"]\nfoo = 1', "has no key 'foo'"),
        ('[run]\nbaseline = "on-1"', "[run] baseline must be one of the cells (only), not 'on-1'"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_target_is_one_sentence(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        cells(parse_plan(HEAD + text, source="p.toml", directory=tmp_path))
    assert said in str(error.value)


def test_targets_are_a_dimension_of_the_sweep(tmp_path: Path) -> None:
    """Each target has what [target] says; its name leads the cells'.  A cell that headrace's rules forbid is not
    launched on headrace's server, and left to the judgement of another."""
    plan = parse_plan(
        HEAD + '[target]\nmodel = "owner/small"\nready-timeout-s = 9\n[targets.vllm]\nkind = "vllm"\n'
        "[targets.ours]\n[serve]\nmax-num-seqs = 64\nmax-model-len = 512\n"
        '[[sweep]]\ntarget = ["vllm", "ours"]\nmax-num-batched-tokens = [32, 64]\n',
        source="p.toml",
        directory=tmp_path,
    )
    found = cells(plan)
    assert [cell.name for cell in found] == ["vllm-32", "vllm-64", "ours-32", "ours-64"]
    assert [cell.legal for cell in found] == [True, True, False, True]
    assert "R2" in (found[0].doubts or "") and found[2].rule == "R2"
    assert {(cell.target.model, cell.target.ready_timeout_s) for cell in found} == {("owner/small", 9)}
    assert [cell.settings["target"] for cell in found] == ["vllm", "vllm", "ours", "ours"]


def test_servers_other_than_headrace_take_any_flag(tmp_path: Path) -> None:
    text = (
        HEAD + '[target]\nkind = "vllm"\nmodel = "a/b"\n[serve]\nno-such-flag = 3\n[[sweep]]\ndtype = ["half", "auto"]'
    )
    assert [cell.flags["no-such-flag"] for cell in cells(parse_plan(text, source="p", directory=tmp_path))] == [3, 3]


def test_a_program_beside_the_plan_is_found_from_everywhere(tmp_path: Path) -> None:
    text = HEAD + '[target]\nkind = "command"\ncommand = ["bin/serve", "{port}"]'
    assert parse_plan(text, source="p", directory=tmp_path).target.command[0] == str(tmp_path / "bin/serve")


def test_the_example_asks_vllm_what_it_forbids_headrace() -> None:
    found = cells(read_plan(Path(__file__).resolve().parents[3] / "examples" / "vllm-and-headrace.toml"))
    assert len(found) == 12 and [cell.name for cell in found if not cell.legal] == ["headrace-32"]
    assert [cell.name for cell in found if cell.doubts] == ["vllm-32"]


def test_headrace_s_own_server_logs_its_steps_and_no_other_does(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    wanted = ("--step-log", str(tmp_path / "steps.jsonl"), "--step-log-requests")
    assert _step_log(TargetTable(), {}, log) == wanted
    assert _step_log(TargetTable(), {"step-log": "mine"}, log) == ()
    assert _step_log(TargetTable(kind="vllm", model="m"), {}, log) == ()
    assert _step_log(TargetTable(command=("other", "{port}")), {}, log) == ()
