"""Whose fault it is, and what to do about it: every error that headrace raises on purpose."""

from __future__ import annotations


class HeadraceError(Exception):
    """Base of all errors raised on purpose; its text is one sentence for the user, without a traceback."""


class InvalidRequest(HeadraceError):
    """The caller's fault: a request that can never be served as asked.  The server answers 4xx.

    `param` names the field; `code` is the machine-readable kind (OpenAI's `error.code`).
    """

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class ConfigError(HeadraceError):
    """The configuration's fault: a flag, a plan key or an input file.  The command line exits with 2.

    The message names the key and a value (or a range) that would be accepted.
    """


class LaunchError(HeadraceError):
    """The environment's fault: a server that did not start, a port that is taken, a file system that is full.

    `log_tail` holds the last lines of the log that prove it (may be empty).
    `kind` classifies the failure: not_ready, port, oom, crash, frozen, wrong_model, timeout, disk, interrupted,
    refused (the server rejected its settings), protocol (it answered, but nothing that could be measured).
    """

    def __init__(self, message: str, *, kind: str = "crash", log_tail: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.log_tail = log_tail


class InvariantError(HeadraceError):
    """Our fault: something that must always hold did not."""
