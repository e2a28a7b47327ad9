"""Stop strings: text passes on, but for what is one or may become one.

Invariant: what was given out is the whole text up to the first stop string, whatever pieces it came in, and
never a part of that string; what waits depends on the text alone, so a resumed answer waits as the first
attempt did. Knows nothing of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """The first is the one that ends first, and of those that end together the longest.

    text: all that was given out. found: a stop string was met; nothing passes any more.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.text = ""
        self.found = False

    def push(self, piece: str) -> str:
        """Takes new text, returns what can be given out by now."""
        if self.found or not piece:
            return ""
        text = self._held + piece
        start = self._first(text)
        self.found = start is not None
        free = start if start is not None else len(text) - self._doubtful(text)
        self._held = "" if self.found else text[free:]
        return self._give(text[:free])

    def release(self) -> str:
        """At the end what was held back turned out to be text."""
        held, self._held = self._held, ""
        return self._give(held)

    def _give(self, text: str) -> str:
        self.text += text
        return text

    def _first(self, text: str) -> int | None:
        """Where the first stop string begins; none began before the text that is held."""
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        return min(found)[1] if found else None

    def _doubtful(self, text: str) -> int:
        """The length of the longest end of the text that a stop string begins with."""
        return max((_overlap(text, stop) for stop in self._stops), default=0)


def _overlap(text: str, stop: str) -> int:
    longest = min(len(stop) - 1, len(text))
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
