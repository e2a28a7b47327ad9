"""Counts how background jobs end, for which no request waits: each once, at the gateway that accepted it.

Invariant: it only looks; no job goes on, ends or is kept because of it. So it asks for the state instead of
reading the events: custody takes an end that was read for one that its client has. What has not ended when
the gateway leaves is counted nowhere.
Must not know: HTTP, what else is counted.
"""

from __future__ import annotations

import asyncio
import itertools
import logging

from service.answers import job_error
from service.broker.base import BrokerError, BrokerUnavailable, GatewayBroker, JobNotFound
from service.broker.tasks import end
from service.errors import ApiError
from service.metrics import GatewayMetrics
from service.protocol import DoneData
from service.queue_errors import told

log = logging.getLogger(__name__)

LOOK_S = 1.0
AT_ONCE = 256  # in turn: thousands that wait must not cost the loop more


class Background:
    def __init__(self, broker: GatewayBroker, metrics: GatewayMetrics) -> None:
        self._broker, self._metrics = broker, metrics
        self._unended: dict[str, None] = {}  # in the order of their turns
        self._looking: asyncio.Task[None] | None = None

    def add(self, job_id: str) -> None:
        self._unended[job_id] = None

    def start(self) -> None:
        self._looking = asyncio.create_task(self._look(), name="background")

    async def stop(self) -> None:
        await end(self._looking)

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                for job_id in list(itertools.islice(self._unended, AT_ONCE)):
                    await self._look_at(job_id)
            except BrokerUnavailable:  # whoever needs the server now says so
                pass
            except Exception:  # a defect of ours must not end the counting for good
                log.exception("a background job's end was not counted")

    async def _look_at(self, job_id: str) -> None:
        try:
            status = await self._broker.status(job_id)
            if status is None:
                raise JobNotFound(job_id)
        except BrokerUnavailable:
            raise
        except BrokerError as error:
            del self._unended[job_id]
            self._failed(told(error))
            return
        del self._unended[job_id]  # first: an end that cannot be read must not stand before the others
        if status.terminal is None:
            self._unended[job_id] = None
        elif status.terminal.type == "done":
            self._metrics.succeeded(DoneData.model_validate(status.terminal.data).finish_reason)
        else:
            self._failed(job_error(status.terminal))

    def _failed(self, error: ApiError) -> None:
        self._metrics.failed(error.code, error.status)
