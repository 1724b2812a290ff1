"""How log lines look: text for people, or one JSON object a line for machines; on stderr, stdout has the ready line."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

FORMATS = ("text", "json")


class JsonFormatter(logging.Formatter):
    """`{"time", "level", "logger", "message"}`, and "exception" with the traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure_logging(level: str, form: str) -> None:
    """Our lines and uvicorn's, on stderr, with a time."""
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(levelname)s %(asctime)s %(message)s", "%m-%d %H:%M:%S")
    handler.setFormatter(JsonFormatter() if form == "json" else text)
    for name in ("headrace", "uvicorn"):
        target = logging.getLogger(name)
        target.handlers[:] = [handler]
        target.propagate = False
        target.setLevel(level.upper())
    # uvicorn's own progress lines would only repeat ours.
    logging.getLogger("uvicorn.error").setLevel(max(logging.WARNING, logging.getLogger("uvicorn").level))
