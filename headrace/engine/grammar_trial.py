"""Tries a grammar out in a process of its own, which is ended when it takes too long or too much memory.

`python -m headrace.engine.grammar_trial` is that process: one JSON line in, one out.
"""

from __future__ import annotations

import json
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Sequence

from headrace.engine.grammar_source import compile_grammar, open_tokenizer
from headrace.errors import InvalidRequest

MEMORY_BYTES = 4 << 30
START_SECONDS = 60.0


class GrammarTrial:
    """Starts the process when it is first needed, and again after it was ended.  Not thread-safe."""

    def __init__(self, tokenizer_json: str, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._greeting = {"tokenizer": tokenizer_json, "vocab_size": vocab_size, "eos": list(eos_token_ids)}
        self._process: subprocess.Popen[bytes] | None = None

    def check(self, kind: str, text: str, seconds: float) -> None:
        """Return when the grammar can be compiled and followed.  Raises InvalidRequest."""
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
            )
            self._ask(self._greeting, START_SECONDS)
        error = self._ask({"kind": kind, "text": text}, seconds)
        if error is not None:
            raise InvalidRequest(error)

    def _ask(self, question: dict[str, object], seconds: float) -> str | None:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        try:
            data = memoryview(json.dumps(question).encode() + b"\n")
            while data:
                data = data[process.stdin.write(data) :]
            ready, _, _ = select.select([process.stdout], [], [], seconds)
            answer = process.stdout.readline() if ready else None
        except OSError:
            answer = b""
        if not answer:
            self._end()
            late = f"it was not compiled within {seconds:g} s"
            raise InvalidRequest(late if answer is None else "it needs too much memory to compile")
        error: str | None = json.loads(answer)
        return error

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


def main() -> None:
    """Answer until the other side goes away."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server's Ctrl-C; its end closes our input
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    greeting = json.loads(sys.stdin.buffer.readline())
    tokenizer = open_tokenizer(greeting["tokenizer"], greeting["vocab_size"], greeting["eos"])
    answer: str | None = None
    while True:
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
        line = sys.stdin.buffer.readline()
        if not line:
            return
        question = json.loads(line)
        try:
            compile_grammar(tokenizer, question["kind"], question["text"])
            answer = None
        except InvalidRequest as error:
            answer = str(error)


if __name__ == "__main__":
    main()
