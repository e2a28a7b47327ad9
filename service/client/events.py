"""Server-sent events out of the bytes of a response.

Invariant: an event is given out only when its closing blank line has come; comments are dropped.
Bytes and not httpx's lines, which also break at characters that JSON may hold (U+2028).
Source of the format: WHATWG HTML, "Server-sent events".
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass

LINE_END = re.compile(rb"\r\n|\n|\r")


@dataclass(frozen=True)
class SentEvent:
    id: str
    type: str
    data: str


class EventDecoder:
    def __init__(self) -> None:
        self._rest = b""
        self._mark = codecs.BOM_UTF8  # may stand before the first line
        self._id = ""
        self._type = ""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> Iterator[SentEvent]:
        text = self._rest + chunk
        # A lone \r at the end may be the first half of \r\n: it waits.
        held = 1 if text.endswith(b"\r") else 0
        *lines, rest = LINE_END.split(text[: len(text) - held])
        self._rest = rest + text[len(text) - held :]
        for line in lines:
            event = self._line(line.removeprefix(self._mark).decode("utf-8", "replace"))
            self._mark = b""
            if event is not None:
                yield event

    def _line(self, line: str) -> SentEvent | None:
        if line:
            self._field(line)
            return None
        event = SentEvent(self._id, self._type or "message", "\n".join(self._data)) if self._data else None
        self._type, self._data = "", []
        return event

    def _field(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._type = value
        elif name == "id":
            self._id = value
