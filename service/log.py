"""Logs: one JSON object a line on stderr, with the request id where the caller gives one.

Invariant: nothing a user sent is logged: the fields named in `SECRET` are dropped whoever passes them.
`log.info("finished", extra={"job_id": ..., "request_id": ...})` puts the extra fields beside the message.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

SECRET = frozenset({"prompt", "text", "image", "images", "blob", "blobs", "authorization", "api_key"})
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {
    "message",
    "asctime",
    "color_message",
    "taskName",
}


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        extra = record.__dict__.items()
        entry |= {key: value for key, value in extra if key not in _STANDARD and key not in SECRET}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str, ensure_ascii=False)


def configure(level: str) -> None:
    """For a process's entry point only: replaces the root logger's handlers."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # Every request of a client library at info would drown our own lines.
    for name in ("httpx", "httpcore", "uvicorn.access"):
        logging.getLogger(name).setLevel("WARNING")
