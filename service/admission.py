"""How much work may be under way at once, and when to come back where it is too much.

Two bounds: requests open in this gateway (their bodies are memory), counted here from before the body is
read until the last byte is sent; and predicted tokens of all unfinished jobs of all gateways, counted in the
queue before a picture is decoded (`GatewayBroker.admit`).
Invariant: `Retry-After` follows what the workers really get done.
Must not know: HTTP, Redis, what the work is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from service.broker.base import Full, Reservation
from service.errors import BadField, TooBusy
from service.protocol import QueueStats, WorkerInfo

MIN_RETRY_S, MAX_RETRY_S, UNKNOWN_RETRY_S = 1, 60, 5


class Admission:
    """A context manager around one request that is open in this gateway; TooBusy where there are too many."""

    def __init__(self, max_open: int) -> None:
        self._max_open = max_open
        self.in_flight = 0

    def __enter__(self) -> None:
        if self.in_flight >= self._max_open:
            message = f"{self.in_flight} requests are open here; at most {self._max_open} are taken."
            raise TooBusy(message, code="gateway_full", retry_after_s=UNKNOWN_RETRY_S)
        self.in_flight += 1

    def __exit__(self, *_: object) -> None:
        self.in_flight -= 1


def check_possible(asked: Reservation) -> None:
    """A request that could never be admitted must not be told to come back."""
    limits = [limit for limit in (asked.limit, asked.owner_limit) if limit is not None]
    if asked.tokens > min(limits):
        raise BadField(
            "max_tokens",
            f"The prompt, the pictures and 'max_tokens' are {asked.tokens} predicted tokens; "
            f"at most {min(limits)} may be under way.",
            code="request_too_large",
        )


def refusal(asked: Reservation, full: Full, workers: Sequence[WorkerInfo]) -> TooBusy:
    limit = asked.limit if full.which == "queue" else asked.owner_limit or 0
    whose = "are under way" if full.which == "queue" else "of this API key are under way"
    return TooBusy(
        f"{full.reserved_tokens} predicted tokens {whose}, of at most {limit}; this has {asked.tokens}.",
        code="queue_full" if full.which == "queue" else "key_full",
        retry_after_s=retry_after_s(full.reserved_tokens + asked.tokens - limit, workers),
    )


def retry_after_s(tokens: int, workers: Sequence[WorkerInfo]) -> int:
    """When, at the present rate of all workers, so much work will have left."""
    rate = tokens_per_s(workers)
    if rate <= 0:
        return UNKNOWN_RETRY_S
    return min(MAX_RETRY_S, max(MIN_RETRY_S, math.ceil(tokens / rate)))


def expected_wait_s(queue: QueueStats, workers: Sequence[WorkerInfo]) -> float:
    """How long the work that waits now will take. Before a rate is known: how long its oldest has waited."""
    rate = tokens_per_s(workers)
    return queue.waiting_tokens / rate if rate > 0 else queue.oldest_age_s


def tokens_per_s(workers: Sequence[WorkerInfo]) -> float:
    return sum(worker.tokens_per_s for worker in workers)
