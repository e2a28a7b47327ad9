"""How fast a worker works off predicted tokens (`prediction`), for its heartbeat.

Invariant: counts busy time alone, so an idle worker keeps the rate it last showed; what a job was predicted
to take and did not need counts as done when it ends, so that queued tokens over this rate is a wait.
Must not know: jobs, clocks.
"""

from __future__ import annotations

import math

HORIZON_S = 60.0


class Throughput:
    """Older work counts less and less: by a factor of e each `horizon_s` of busy time."""

    def __init__(self, horizon_s: float = HORIZON_S) -> None:
        self._horizon_s = horizon_s
        self._tokens = 0.0
        self._busy_s = 0.0

    def add(self, tokens: int, busy_s: float) -> None:
        kept = math.exp(-busy_s / self._horizon_s)
        self._tokens = self._tokens * kept + tokens
        self._busy_s = self._busy_s * kept + busy_s

    def per_s(self) -> float:
        """0 where nothing was done yet."""
        return self._tokens / self._busy_s if self._busy_s > 0 else 0.0
