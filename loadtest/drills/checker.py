"""Is what a client was streamed whole? Knows the HTTP API alone, nothing of how the service makes it.

Invariant: ids grow strictly, also over reconnects; no token is repeated or missing; the pieces are the final
text; exactly one terminal event, and it is the last.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

_ID = re.compile(r"(\d+)-(\d+)")


@dataclass
class StreamCheck:
    """Feed it every event in the order of arrival; `faults` says what is wrong, in words."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    faults: list[str] = field(default_factory=list)
    last_id: str | None = None
    done: dict[str, Any] | None = None
    error: dict[str, Any] | None = None

    @property
    def ended(self) -> bool:
        return self.done is not None or self.error is not None

    def see(self, event: str, event_id: str, data: dict[str, Any]) -> None:
        if self.ended:
            self.faults.append(f"{event} {event_id} behind the end")
        self._check_id(event_id, event)
        if event == "token":
            self._see_tokens(data)
        elif event == "done":
            self.done = data
            self._check_end(data)
        elif event == "error":
            self.error = data["error"]
        else:
            self.faults.append(f"unknown event {event!r}")

    def wrong_tokens(self, expected: Sequence[int]) -> int:
        """How many places differ from what had to come."""
        return sum(here != there for here, there in zip_longest(self.token_ids, expected))

    def _check_id(self, event_id: str, event: str) -> None:
        found = _ID.fullmatch(event_id)
        if found is None:
            self.faults.append(f"{event} has the id {event_id!r}")
            return
        place = int(found[1]), int(found[2])
        if self.last_id is not None and event != "error":
            attempt, seq = (int(part) for part in self.last_id.split("-"))
            if place[0] < attempt or place[1] <= seq:
                self.faults.append(f"{event_id} after {self.last_id}")
        self.last_id = event_id

    def _see_tokens(self, data: dict[str, Any]) -> None:
        if len(data["drafted"]) != len(data["token_ids"]):
            self.faults.append("drafted and token_ids differ in length")
        self.token_ids += data["token_ids"]
        self.text += data["text"]

    def _check_end(self, data: dict[str, Any]) -> None:
        if self.text != data["text"]:
            self.faults.append(f"the pieces are {self.text!r}, the text is {data['text']!r}")
        if len(self.token_ids) != data["usage"]["completion_tokens"]:
            self.faults.append(
                f"{len(self.token_ids)} tokens, usage says {data['usage']['completion_tokens']}"
            )
