"""The queue and the workers as this gateway sees them, and which of them a request is checked against.

Must not know: requests.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from service.broker.base import GatewayBroker
from service.errors import NotFound, NoWorker, QueueDown
from service.protocol import ModelCard, QueueStats, WorkerInfo
from service.queue_errors import RETRY_AFTER_S, queue_errors

Look = tuple[QueueStats, list[WorkerInfo]]
DOUBT_S = 0.25  # how long is waited for a queue that did not answer the last time


class Fleet:
    def __init__(self, broker: GatewayBroker) -> None:
        self._broker = broker
        self._seen: Look | None = None
        self._seen_at = 0.0
        self._looking: asyncio.Task[Look] | None = None
        self._failed = False

    async def look(self, max_age_s: float = 0.0) -> Look:
        """The queue, and the workers that take new jobs; or what was seen so long ago at most.

        A burst then costs one look, not one for each request and each worker of the fleet.
        """
        if self._seen is not None and time.monotonic() - self._seen_at < max_age_s:
            return self._seen
        if max_age_s <= 0:
            return await self._look()  # one that was begun earlier is no answer
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look(), name="look")
            self._looking.add_done_callback(_seen_to)
        try:
            async with asyncio.timeout(DOUBT_S if self._failed else None):
                return await asyncio.shield(self._looking)
        except TimeoutError as silent:
            raise QueueDown("The queue does not answer.", retry_after_s=RETRY_AFTER_S) from silent

    async def _look(self) -> Look:
        began = time.monotonic()
        try:
            with queue_errors():
                queue = await self._broker.queue_stats()
                workers = [worker for worker in await self._broker.workers() if not worker.draining]
        except Exception:
            self._failed = True
            raise
        self._failed = False
        self._seen, self._seen_at = (queue, workers), began
        return self._seen

    async def ready(self, max_age_s: float = 0.0, *, without_workers: bool = False) -> Look:
        """As `look`, with at least one worker unless it goes without, else 503."""
        queue, workers = await self.look(max_age_s)
        if not workers and not without_workers:
            raise NoWorker("No worker is ready.", retry_after_s=RETRY_AFTER_S)
        return queue, workers


def _seen_to(look: asyncio.Task[Look]) -> None:
    """A failure that nobody waited for is none that is to be told of when the task is collected."""
    if not look.cancelled():
        look.exception()


def open_card(workers: Sequence[WorkerInfo], model: str | None) -> ModelCard:
    """The card of the model that would run a job now."""
    able = [worker for worker in workers if model in (None, worker.card.model_id)]
    if not able:
        raise NotFound(f"No model '{model}' is served.", param="model", code="model_not_found")
    return min(able, key=lambda worker: worker.worker_id).card
