"""One JSON line for each step: what it computed, what was running and waiting, how full the KV cache was.

The step thread appends a tuple to a queue, and that is all it pays; a writer thread makes text and writes it, twice a
second while there is something to write.  The log never stops the engine: when the writer cannot keep up or the disk
is full, records are lost, and a line in the log says how many.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.core.batch import Batch, TokenEvent
from headrace.engine.flag_values import parse_tokens
from headrace.errors import ConfigError

logger = logging.getLogger("headrace.engine")

SCHEMA = "headrace.step-log/1"
DEFAULT_MAX_BYTES = 256 << 20
LEAST_MAX_BYTES = 1 << 20
WRITE_EVERY_S = 0.5
_MAX_PENDING = 65_536  # records; a step thread at 1,000 steps/s fills it in a minute in which the disk does nothing
_PIECE_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class StepLogConfig:
    """Where the log goes.

    max_bytes      most that `path` and the one file kept beside it (`path`.1, the older half) may take together
    with_requests  name every chunk of a step: request id, first position, length
    """

    path: Path
    max_bytes: int = DEFAULT_MAX_BYTES
    with_requests: bool = False


def read_step_log_config(path: str | None, max_bytes: str | int | None, with_requests: bool) -> StepLogConfig | None:
    """From the flags --step-log, --step-log-max-bytes and --step-log-requests.  Raises ConfigError."""
    if path is None:
        if max_bytes is not None or with_requests:
            flag = "--step-log-requests" if with_requests else "--step-log-max-bytes"
            raise ConfigError(f"{flag} needs --step-log FILE")
        return None
    most = DEFAULT_MAX_BYTES if max_bytes is None else parse_tokens("--step-log-max-bytes", max_bytes)
    if most < LEAST_MAX_BYTES:
        raise ConfigError(f"--step-log-max-bytes {most} must be at least {LEAST_MAX_BYTES} (1M)")
    where = Path(path).expanduser().absolute()
    if not where.parent.is_dir() or where.is_dir():
        raise ConfigError(f"--step-log {path} must name a file in a directory that is there")
    return StepLogConfig(where, most, with_requests)


class StepLog:
    """Appends to `config.path`.  Raises ConfigError when it cannot be opened; nothing raises after that.

    `facts` go into each header line.  `record` belongs to the step thread; `close` writes what is left.
    """

    def __init__(
        self, config: StepLogConfig, facts: Mapping[str, Any], now_s: Callable[[], float] = time.perf_counter
    ) -> None:
        self.config = config
        self._facts = dict(facts)
        self._now_s = now_s
        self._pending: deque[tuple[Any, ...]] = deque()
        self._lost = self._lost_told = 0  # because the queue was full: counted by the step thread, told by the writer
        self._unwritten = 0  # by the writer: the disk refused
        self._warned = False
        self._size = 0
        self._closing = threading.Event()
        self._some = threading.Event()
        try:
            self._fd = _open(config.path)
            self._size = _mend(self._fd)
            self._append(self._header())
        except OSError as error:
            raise ConfigError(
                f"--step-log {config.path} cannot be written ({error.strerror}); name a file in a directory that is "
                "there and has room"
            ) from None
        self._writer = threading.Thread(target=self._write_forever, name="step-log", daemon=True)
        self._writer.start()

    def record(
        self,
        batch: Batch,
        events: Sequence[TokenEvent],
        started_s: float,
        ended_s: float,
        *,
        running: int,
        waiting: int,
        kv_used: int,
        kv_free: int,
        accepted: int = 0,
    ) -> None:
        """Note one step.  The queues and blocks are as they were while the step computed, after it was planned;
        `accepted` drafts were right."""
        pending = self._pending
        if len(pending) >= _MAX_PENDING:
            self._lost += 1
            return
        prefill = decode = drafted = kv_tokens = pairs = rows = 0
        for sequence, start, length, samples, drafts in batch.chunks:
            drafted += len(drafts)
            rows += 1 + len(drafts) if samples else 0
            if start < sequence.prefill_length:
                prefill += length
                pairs += length * (2 * start + length)
            else:
                decode += length
                kv_tokens += start + length
        chunks = None
        if self.config.with_requests:
            chunks = [(sequence.request_id, start, length) for sequence, start, length, *_ in batch.chunks]
        finished = len([1 for event in events if event.finish_reason is not None])
        was_empty = not pending
        pending.append(
            (
                *(batch.step, started_s, ended_s, prefill, decode, kv_tokens, pairs, rows, len(batch.chunks)),
                *(running, waiting),
                *(kv_used, kv_free, len(batch.preempted), len(batch.admitted), finished, drafted, accepted, chunks),
            )
        )
        if was_empty:
            self._some.set()

    def close(self) -> None:
        """Write what is pending and close the file.  Idempotent."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._some.set()
        self._writer.join(10.0)

    # -- the writer's thread ------------------------------------------------------------------------------------------

    def _write_forever(self) -> None:
        while not self._closing.is_set():
            self._some.wait()
            self._closing.wait(WRITE_EVERY_S)
            self._some.clear()
            self._write_pending()
        self._write_pending()
        os.close(self._fd)

    def _write_pending(self) -> None:
        lines: list[bytes] = []
        size = 0
        for line in self._lines():
            lines.append(line)
            size += len(line)
            if size >= _PIECE_BYTES:
                self._write(lines)
                lines, size = [], 0
        self._write(lines)

    def _lines(self) -> Iterator[bytes]:
        while self._pending:
            yield _line(self._pending.popleft())
        if lost := self._lost - self._lost_told:
            self._lost_told += lost
            yield _gap(lost, "the writer could not keep up")

    def _write(self, lines: list[bytes]) -> None:
        """Write whole lines, or none of them: a full disk leaves no half line behind."""
        if not lines:
            return
        piece = b"".join(lines)
        try:
            if self._size + len(piece) > self.config.max_bytes // 2:
                self._rotate()
            if self._unwritten:
                piece = _gap(self._unwritten, "they could not be written") + piece
            self._append(piece)
            self._unwritten = 0
        except OSError as error:
            self._unwritten += len(lines)
            if not self._warned:
                self._warned = True
                logger.warning(
                    "step log: %s cannot be written (%s); steps are lost from the log until it can, serving goes on",
                    self.config.path,
                    error.strerror,
                )

    def _append(self, piece: bytes) -> None:
        done = 0
        try:
            while done < len(piece):
                done += os.write(self._fd, piece[done:])
        except OSError:
            os.ftruncate(self._fd, self._size)
            raise
        self._size += len(piece)

    def _rotate(self) -> None:
        os.replace(self.config.path, self.config.path.with_name(self.config.path.name + ".1"))
        fresh = _open(self.config.path)
        os.close(self._fd)
        self._fd, self._size = fresh, 0
        self._append(self._header())

    def _header(self) -> bytes:
        """One pair of both clocks: `unix_s - monotonic_s` turns the steps' times into times of day."""
        clocks = {"schema": SCHEMA, "monotonic_s": self._now_s(), "unix_s": time.time(), "pid": os.getpid()}
        return json.dumps(clocks | self._facts).encode() + b"\n"


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)


def _mend(fd: int) -> int:
    """The size of an older log; a line that a killed process left half written is ended."""
    size = os.fstat(fd).st_size
    if size and os.pread(fd, 1, size - 1) != b"\n":
        size += os.write(fd, b"\n")
    return size


def _line(record: tuple[Any, ...]) -> bytes:
    step, started_s, ended_s, prefill, decode, kv_tokens, pairs, rows, sequences, running, waiting, *rest = record
    used, free, *counts, chunks = rest
    preempted, admitted, finished, drafted, accepted = counts
    # By hand: json.dumps takes twice as long, and the writer shares the interpreter with the step thread.
    text = (
        f'{{"step":{step},"start_s":{started_s:.6f},"end_s":{ended_s:.6f},"prefill_tokens":{prefill},'
        f'"decode_tokens":{decode},"kv_tokens":{kv_tokens},"pairs":{pairs},"rows":{rows},"sequences":{sequences},'
        f'"running":{running},"waiting":{waiting},"kv_used":{used},"kv_free":{free},"preempted":{preempted},'
        f'"admitted":{admitted},"finished":{finished},'
        f'"drafted":{drafted},"accepted":{accepted}'
    )
    if chunks is not None:
        text += ',"chunks":' + json.dumps(chunks)
    return (text + "}\n").encode()


def _gap(count: int, why: str) -> bytes:
    return json.dumps({"lost": count, "why": why}).encode() + b"\n"
