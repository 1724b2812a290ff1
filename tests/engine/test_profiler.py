"""The profiler: started and stopped once, bounded by steps, its trace complete when `stop` has answered."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from engine_world import LetterTokenizer, ScriptedRunner, config, request

from headrace.engine.async_engine import AsyncEngine
from headrace.engine.engine import Engine
from headrace.engine.profiler import DEFAULT_MAX_STEPS, Profiler, ProfilerConfig, read_profiler_config
from headrace.errors import ConfigError, HeadraceError, InvalidRequest


class Recording:
    """Stands in for torch's profiler: its trace says between which steps it ran."""

    fails = False

    def __init__(self, _: ProfilerConfig) -> None:
        self.events: list[str] = []

    def start(self) -> None:
        self.events.append("start")

    def stop(self) -> None:
        self.events.append("stop")

    def export_chrome_trace(self, path: str) -> None:
        if self.fails:
            raise OSError("No space left on device")
        Path(path).write_text(json.dumps(self.events))


@asynccontextmanager
async def serving(profiler: Profiler | None, runner: ScriptedRunner | None = None) -> AsyncIterator[AsyncEngine]:
    engine = AsyncEngine(Engine(config(), runner or ScriptedRunner(), profiler=profiler), LetterTokenizer())  # type: ignore[arg-type]
    try:
        yield engine
    finally:
        engine.close()


async def run(engine: AsyncEngine, request_id: str, tokens: int) -> None:
    async for _ in engine.submit(request(request_id, max_tokens=tokens)):
        pass


def test_a_recording_is_written_when_stop_answers(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(Profiler(ProfilerConfig(tmp_path), Recording)) as engine:
            started = await engine.start_profile()
            await run(engine, "a", 5)
            answer = await engine.stop_profile()
            assert answer["trace"] == started["trace"] and answer["steps"] == 5 and answer["ended_by"] == "stop_profile"
            assert json.loads(Path(answer["trace"]).read_text()) == ["start", "stop"]
            assert answer["trace"].endswith(".pt.trace.json.gz")
            again = await engine.start_profile()  # and once more, into another file
            assert again["trace"] != started["trace"]
            assert (await engine.stop_profile())["steps"] == 0

    asyncio.run(scenario())


def test_a_forgotten_profiler_ends_by_itself_and_stop_still_answers(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(Profiler(ProfilerConfig(tmp_path, max_steps=3), Recording)) as engine:
            await engine.start_profile()
            await run(engine, "a", 10)
            answer = await engine.stop_profile()
            assert answer["steps"] == 3 and answer["ended_by"] == "max_steps"

    asyncio.run(scenario())


def test_out_of_turn_is_refused_in_a_sentence(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(Profiler(ProfilerConfig(tmp_path), Recording)) as engine:
            with pytest.raises(InvalidRequest, match="has not been started; POST /start_profile first"):
                await engine.stop_profile()
            await engine.start_profile()
            with pytest.raises(InvalidRequest, match="has been started already; POST /stop_profile first"):
                await engine.start_profile()
            await engine.stop_profile()
        async with serving(None) as engine:
            with pytest.raises(InvalidRequest, match="start the server with --profiler-config"):
                await engine.start_profile()

    asyncio.run(scenario())


def test_a_trace_that_cannot_be_written_is_an_answer_and_serving_goes_on(tmp_path: Path) -> None:
    class Failing(Recording):
        fails = True

    async def scenario() -> None:
        async with serving(Profiler(ProfilerConfig(tmp_path), Failing)) as engine:
            await engine.start_profile()
            with pytest.raises(HeadraceError, match="could not be written"):
                await engine.stop_profile()
            await run(engine, "a", 2)
            await engine.start_profile()
            with pytest.raises(HeadraceError, match="could not be written"):
                await engine.stop_profile()
        assert not list(tmp_path.iterdir())

    asyncio.run(scenario())


def test_a_recording_that_nobody_stopped_is_written_at_the_end(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(Profiler(ProfilerConfig(tmp_path), Recording)) as engine:
            await engine.start_profile()

    asyncio.run(scenario())
    assert len(list(tmp_path.iterdir())) == 1


def test_a_call_that_waits_when_the_step_loop_dies_gets_its_error(tmp_path: Path) -> None:
    def broken(_: object) -> None:
        raise KeyboardInterrupt  # nothing that a step may raise: the loop itself ends

    async def scenario() -> None:
        async with serving(None) as engine:
            with pytest.raises(HeadraceError, match="the engine has stopped: KeyboardInterrupt"):
                await engine._call(broken)
            with pytest.raises(HeadraceError, match="the engine has stopped"):
                await engine.start_profile() if engine._engine.profiler else await engine._call(broken)

    asyncio.run(scenario())


def test_torch_writes_a_chrome_trace_of_the_step_thread(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")

    async def scenario() -> dict[str, Any]:
        runner = ScriptedRunner()
        runner.before = lambda batch: torch.ones(8, 8) @ torch.ones(8, 8)
        async with serving(Profiler(ProfilerConfig(tmp_path)), runner) as engine:
            await engine.start_profile()
            await run(engine, "a", 3)
            return await engine.stop_profile()

    answer = asyncio.run(scenario())
    with gzip.open(answer["trace"]) as file:
        names = [event.get("name") for event in json.load(file)["traceEvents"]]
    assert names.count("aten::mm") == 3
    assert answer["bytes"] == Path(answer["trace"]).stat().st_size


def test_both_spellings_are_read(tmp_path: Path) -> None:
    where = str(tmp_path / "new")
    given = json.dumps({"profiler": "torch", "torch_profiler_dir": where, "torch_profiler_with_stack": True})
    config_, _ = read_profiler_config(given, {})
    assert config_ == ProfilerConfig(tmp_path / "new", DEFAULT_MAX_STEPS, with_stack=True)
    assert (tmp_path / "new").is_dir()
    older, why = read_profiler_config(None, {"VLLM_TORCH_PROFILER_DIR": where})
    assert older == ProfilerConfig(tmp_path / "new") and "deprecated; use --profiler-config" in why
    assert read_profiler_config(None, {}) == (None, "")
    limited, _ = read_profiler_config(json.dumps({**json.loads(given), "max_iterations": 7}), {})
    assert limited is not None and limited.max_steps == 7


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("torch", "is no JSON object; write it like"),
        ('{"profiler": "cuda", "torch_profiler_dir": "/tmp"}', '"profiler" must be "torch"'),
        ('{"profiler": "torch"}', '"torch_profiler_dir" is missing'),
        ('{"profiler": "torch", "torch_profiler_dir": "traces"}', "it must be an absolute directory"),
        ('{"profiler": "torch", "torch_profiler_dir": "/proc/no"}', "/proc/no cannot be made"),
        ('{"profiler": "torch", "torch_profiler_dir": "/tmp", "steps": 1}', "'steps' is not known; use one of"),
        ('{"profiler": "torch", "torch_profiler_dir": "/tmp", "max_steps": -1}', '"max_steps" must be between 1'),
        (
            '{"profiler": "torch", "torch_profiler_dir": "/tmp", "torch_profiler_use_gzip": 1}',
            "'torch_profiler_use_gzip' must be true or false",
        ),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(given: str, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_profiler_config(given, {})
    assert words in str(error.value)
