"""How much work may be under way at once.

Invariant: a request counts from before its body is read until its last byte is sent, so a burst cannot
slip in between check and count; over the limit it is refused with the time after which to come back.
Must not know: what the work is, HTTP, Redis.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence

from service.errors import TooBusy
from service.protocol import QueueStats, WorkerInfo

MIN_RETRY_S, MAX_RETRY_S, UNKNOWN_RETRY_S = 1, 60, 5


class Admission:
    def __init__(self, max_jobs: int, tokens_per_job: int) -> None:
        self._max_jobs = max_jobs
        self._tokens_per_job = tokens_per_job
        self._retry_after_s = UNKNOWN_RETRY_S
        self.in_flight = 0

    @contextlib.contextmanager
    def enter(self) -> Iterator[None]:
        """Counts one request in this gateway."""
        if self.in_flight >= self._max_jobs:
            raise self._refusal(self.in_flight, "gateway_full")
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    def check_queue(self, queue: QueueStats, workers: Sequence[WorkerInfo]) -> None:
        """The jobs of all gateways together."""
        self._retry_after_s = retry_after_s(workers, self._tokens_per_job)
        if queue.waiting >= self._max_jobs:
            raise self._refusal(queue.waiting, "queue_full")

    def _refusal(self, jobs: int, code: str) -> TooBusy:
        return TooBusy(
            f"{jobs} requests are under way; at most {self._max_jobs} are taken.",
            code=code,
            retry_after_s=self._retry_after_s,
        )


def retry_after_s(workers: Sequence[WorkerInfo], tokens_per_job: int) -> int:
    """When, at the present rate of all workers, one job more will have left."""
    rate = sum(worker.tokens_per_s for worker in workers)
    if rate <= 0:
        return UNKNOWN_RETRY_S
    return min(MAX_RETRY_S, max(MIN_RETRY_S, math.ceil(tokens_per_job / rate)))
