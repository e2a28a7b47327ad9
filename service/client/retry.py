"""What is tried again, how often, and after which wait.

Invariant: no wait is shorter than the service asked for; one that is longer than the caller would wait is
given up at once. Only failures that say nothing of the request itself are tried again.
Must not know: which request it is.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import httpx

from service.client.errors import ApiFailure, TooBusy, Unavailable, Unreachable


@dataclass(frozen=True)
class Retry:
    """attempts: tries after the first, in a row. Waits double from the first to the longest."""

    attempts: int = 4
    first_wait_s: float = 0.5
    longest_wait_s: float = 30.0


ABANDON = Retry(attempts=3, first_wait_s=0.25, longest_wait_s=5.0)  # who interrupts wants to leave


@dataclass
class Failures:
    """Of one call, in a row: an answer in between begins anew."""

    retry: Retry
    count: int = 0
    rng: random.Random = field(default_factory=random.Random)

    def again_in_s(self, error: httpx.RequestError | ApiFailure) -> float:
        """Raises where the call has failed for good."""
        asked_s = error.retry_after_s or 0.0 if isinstance(error, ApiFailure) else 0.0
        passing = not isinstance(error, ApiFailure) or isinstance(error, TooBusy | Unavailable)
        if not passing or self.count >= self.retry.attempts or asked_s > self.retry.longest_wait_s:
            raise final(error)
        wait_s = min(self.retry.first_wait_s * 2.0**self.count, self.retry.longest_wait_s)
        self.count += 1
        # Spread, so that clients which failed together do not come back together.
        return max(asked_s, wait_s * self.rng.uniform(0.5, 1.0))


def final(error: httpx.RequestError | ApiFailure) -> ApiFailure | Unreachable:
    if isinstance(error, ApiFailure):
        return error
    return Unreachable(str(error) or f"The connection to the service failed ({type(error).__name__}).")
