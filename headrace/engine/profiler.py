"""torch's profiler around the steps of a running engine: a gzip Chrome trace, bounded by a number of steps.

Never measure while it records: every operation becomes an event, and the trace is written from the same process.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.errors import ConfigError, HeadraceError, InvalidRequest

logger = logging.getLogger("headrace.engine")

DIRECTORY_VARIABLE = "VLLM_TORCH_PROFILER_DIR"
# Measured on the demonstration model (1,500 events a step): 64 steps take 150 MiB, and ending the recording keeps the
# interpreter from everything else for 0.35 s, since torch collects its events without letting others run.
DEFAULT_MAX_STEPS = 64
MOST_STEPS = 100_000
CODE = "profiler_state"
_OPTIONS = {
    "torch_profiler_with_stack": "with_stack",
    "torch_profiler_with_flops": "with_flops",
    "torch_profiler_use_gzip": "use_gzip",
    "torch_profiler_record_shapes": "record_shapes",
    "torch_profiler_with_memory": "with_memory",
}
_WITHOUT_EFFECT = ("torch_profiler_dump_cuda_time_total", "ignore_frontend")


@dataclass(frozen=True, slots=True)
class ProfilerConfig:
    """Where traces go and what they hold.

    directory    absolute; made when it is not there
    max_steps    recording ends by itself after so many steps, so that a forgotten profiler does not take the memory
    with_stack   Python call stacks.  vLLM's default is on; here it is off: it multiplies the events of a step
    """

    directory: Path
    max_steps: int = DEFAULT_MAX_STEPS
    with_stack: bool = False
    with_flops: bool = False
    use_gzip: bool = True
    record_shapes: bool = False
    with_memory: bool = False


def read_profiler_config(given: str | None, environ: Mapping[str, str]) -> tuple[ProfilerConfig | None, str]:
    """(configuration, why) from `--profiler-config` (JSON) or the older variable; None when neither is given.

    Raises ConfigError that names the field and an accepted value.
    """
    directory = environ.get(DIRECTORY_VARIABLE)
    if given is None:
        if not directory:
            return None, ""
        config = ProfilerConfig(_directory(directory, DIRECTORY_VARIABLE))
        modern = json.dumps({"profiler": "torch", "torch_profiler_dir": directory})
        return config, f"{DIRECTORY_VARIABLE}, which is deprecated; use --profiler-config '{modern}'"
    try:
        fields = json.loads(given)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise ConfigError(
            f"--profiler-config {given!r} is no JSON object; write it like "
            '\'{"profiler": "torch", "torch_profiler_dir": "/absolute/directory"}\''
        )
    if fields.pop("profiler", None) != "torch":
        raise ConfigError('--profiler-config: "profiler" must be "torch", the only one there is')
    where = fields.pop("torch_profiler_dir", None) or directory
    if not isinstance(where, str):
        raise ConfigError('--profiler-config: "torch_profiler_dir" is missing; name an absolute directory')
    steps = fields.pop("max_steps", fields.pop("max_iterations", None)) or DEFAULT_MAX_STEPS
    if type(steps) is not int or not 1 <= steps <= MOST_STEPS:
        raise ConfigError(f'--profiler-config: "max_steps" must be between 1 and {MOST_STEPS}, not {steps!r}')
    switches: dict[str, bool] = {}
    for key, value in fields.items():
        if key not in _OPTIONS and key not in _WITHOUT_EFFECT:
            known = ", ".join(("profiler", "torch_profiler_dir", "max_steps", *_OPTIONS))
            raise ConfigError(f"--profiler-config: {key!r} is not known; use one of {known}")
        if not isinstance(value, bool):
            raise ConfigError(f"--profiler-config: {key!r} must be true or false, not {value!r}")
        if key in _OPTIONS:
            switches[_OPTIONS[key]] = value
    return ProfilerConfig(_directory(where, '--profiler-config: "torch_profiler_dir"'), steps, **switches), "given"


def _directory(text: str, name: str) -> Path:
    path = Path(text)
    if not path.is_absolute():
        raise ConfigError(f"{name} is {text!r}; it must be an absolute directory")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{name} {text} cannot be made ({error.strerror}); name a directory that can") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise ConfigError(f"{name} {text} cannot be written; name a directory that can")
    return path


class Profiler:
    """start, note_step after each step, stop: all on the step thread, the only one that torch then records.

    Recording ends at `stop` or after `max_steps` steps; a thread of its own writes the file.  `stop` returns at once:
    its `report` is called (from any thread) with what `stop_profile` answers, or with an error.
    """

    def __init__(self, config: ProfilerConfig, make: Callable[[ProfilerConfig], Any] | None = None) -> None:
        self.config = config
        self._make = make or _torch_profiler
        self._recording: Any = None  # a torch profiler while it records
        self._trace: _Trace | None = None  # of the recording that was started last and not stopped by a request
        self._writer: threading.Thread | None = None
        self._count = 0

    def start(self) -> dict[str, Any]:
        """Begin to record.  Raises InvalidRequest when a recording has been started and not stopped."""
        if self._trace is not None:
            raise InvalidRequest("The profiler has been started already; POST /stop_profile first.", code=CODE)
        recording = self._make(self.config)
        recording.start()
        self._count += 1
        stamp = time.strftime("%Y%m%dT%H%M%S")
        suffix = ".pt.trace.json" + (".gz" if self.config.use_gzip else "")
        path = self.config.directory / f"headrace-{os.getpid()}-{stamp}-{self._count}{suffix}"
        self._recording, self._trace = recording, _Trace(path)
        return {"trace": str(path), "max_steps": self.config.max_steps}

    def note_step(self) -> None:
        """One step has ended; ends the recording when it was the last one that may be recorded."""
        if self._recording is not None and self._trace is not None:
            self._trace.steps += 1
            if self._trace.steps >= self.config.max_steps:
                logger.info("profiler: %d steps are recorded, which is the limit", self._trace.steps)
                self._end()

    def stop(self, report: Callable[[dict[str, Any] | Exception], None]) -> None:
        """End the recording; `report` is called once its file is complete.  Raises InvalidRequest without a start."""
        trace = self._trace
        if trace is None:
            raise InvalidRequest("The profiler has not been started; POST /start_profile first.", code=CODE)
        trace.ended_by = "max_steps" if self._recording is None else "stop_profile"
        if self._recording is not None:
            self._end()
        self._trace = None
        trace.when_written(report)

    def close(self, timeout_s: float = 60.0) -> None:
        """End a recording that nobody stopped, and wait until its file is complete."""
        if self._recording is not None:
            self._end()
        if self._writer is not None:
            self._writer.join(timeout_s)

    def _end(self) -> None:
        recording, trace = self._recording, self._trace
        assert trace is not None
        self._recording = None
        try:
            recording.stop()
        except Exception as error:
            trace.settle(HeadraceError(f"the profiler failed to stop ({type(error).__name__}: {error})"))
            return
        self._writer = threading.Thread(target=trace.write, args=(recording,), name="profiler", daemon=True)
        self._writer.start()


class _Trace:
    """One recording on its way to its file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.steps = 0
        self.ended_by = "stop_profile"
        self._lock = threading.Lock()
        self._outcome: dict[str, Any] | Exception | None = None
        self._reports: list[Callable[[dict[str, Any] | Exception], None]] = []

    def write(self, recording: Any) -> None:
        """Write beside the file and rename: a name that ends in .gz is a whole trace."""
        part = self.path.with_name("." + self.path.name)
        try:
            recording.export_chrome_trace(str(part))
            size = part.stat().st_size
            os.replace(part, self.path)
        except Exception as error:
            part.unlink(missing_ok=True)
            self.settle(HeadraceError(f"the trace {self.path} could not be written ({error})"))
            return
        logger.info("profiler: %d steps, %.1f MiB: %s", self.steps, size / 2**20, self.path)
        self.settle({"trace": str(self.path), "bytes": size})

    def settle(self, outcome: dict[str, Any] | Exception) -> None:
        if isinstance(outcome, Exception):
            logger.error("profiler: %s", outcome)
        with self._lock:
            self._outcome = outcome
            reports, self._reports = self._reports, []
        for report in reports:
            self._tell(report, outcome)

    def when_written(self, report: Callable[[dict[str, Any] | Exception], None]) -> None:
        with self._lock:
            outcome = self._outcome
            if outcome is None:
                self._reports.append(report)
        if outcome is not None:
            self._tell(report, outcome)

    def _tell(self, report: Callable[[dict[str, Any] | Exception], None], outcome: dict[str, Any] | Exception) -> None:
        if isinstance(outcome, dict):
            outcome = {**outcome, "steps": self.steps, "ended_by": self.ended_by}
        report(outcome)


def _torch_profiler(config: ProfilerConfig) -> Any:
    from torch.profiler import ProfilerActivity, profile

    return profile(
        activities=[ProfilerActivity.CPU],
        record_shapes=config.record_shapes,
        profile_memory=config.with_memory,
        with_stack=config.with_stack,
        with_flops=config.with_flops,
    )
