"""One blocking read for all the jobs a gateway is waiting for, routed to many waiters.

Invariant: each waiter gets every event behind its own cursor exactly once and in order, whatever happens
to the connection; a waiter whose job has vanished from the server is told (JobNotFound) instead of
left hanging. A new waiter interrupts the blocked read through the gateway's inbox stream, which, being
a stream, cannot lose that wake-up. Knows nothing of what events mean.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis.asyncio

from service.broker.base import BrokerError, BrokerUnavailable, JobNotFound
from service.broker.connection import translated
from service.protocol import Event, Keys

log = logging.getLogger("twigserve.broker")

BLOCK_MS = 2000
BATCH = 256
_BACKOFF_FIRST_S = 0.05
_CANCEL_AGAIN_S = 0.05


class Waiter:
    """cursor: (attempt, seq) of the last event delivered."""

    def __init__(self, cursor: tuple[int, int]) -> None:
        self.cursor = cursor
        self._inbox: asyncio.Queue[Event | BrokerError] = asyncio.Queue()

    def deliver(self, event: Event, read_from: tuple[int, int]) -> None:
        """read_from: where the read that found it began; a waiter further back must not skip ahead."""
        position = (event.attempt, event.seq)
        if read_from <= self.cursor < position:
            self.cursor = position
            self._inbox.put_nowait(event)

    def fail(self, error: BrokerError) -> None:
        self._inbox.put_nowait(error)

    async def next(self) -> Event:
        item = await self._inbox.get()
        if isinstance(item, BrokerError):
            raise item
        return item


class EventReader:
    def __init__(self, client: redis.asyncio.Redis, keys: Keys, inbox: str, backoff_max_s: float) -> None:
        self._client = client
        self._keys = keys
        self._inbox = inbox
        self._inbox_cursor = "0-0"
        self._backoff_max_s = backoff_max_s
        self._waiters: dict[str, list[Waiter]] = {}
        self._task: asyncio.Task[None] | None = None
        self._wanted = asyncio.Event()

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="event-reader")

    async def stop(self) -> None:
        # More than once: redis-py swallows a cancellation that meets an arriving reply.
        while self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=_CANCEL_AGAIN_S)
        self._fail_all(BrokerUnavailable("the gateway is stopping"))

    @contextmanager
    def waiting(self, job_id: str, cursor: tuple[int, int]) -> Iterator[Waiter]:
        waiter = Waiter(cursor)
        self._waiters.setdefault(job_id, []).append(waiter)
        self._wanted.set()
        try:
            yield waiter
        finally:
            self._forget(job_id, waiter)

    def _forget(self, job_id: str, waiter: Waiter) -> None:
        rest = [other for other in self._waiters[job_id] if other is not waiter]
        if rest:
            self._waiters[job_id] = rest
        else:
            del self._waiters[job_id]

    async def _run(self) -> None:
        backoff_s = _BACKOFF_FIRST_S
        lost = False
        while True:
            if not self._waiters:
                self._wanted.clear()
                await self._wanted.wait()
            try:
                if lost:
                    await self._fail_vanished()
                    lost, backoff_s = False, _BACKOFF_FIRST_S
                await self._read()
            except BrokerUnavailable as error:
                log.warning("event reader lost the broker", extra={"error": str(error)})
                lost = True
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, self._backoff_max_s)
            except Exception as error:  # a defect of ours: no waiter may hang on it, the next one may work
                log.exception("event reader failed")
                self._fail_all(BrokerError(f"event reader failed: {type(error).__name__}"))
                await asyncio.sleep(_BACKOFF_FIRST_S)

    async def _read(self) -> None:
        streams: dict[Any, Any] = {self._inbox: self._inbox_cursor}
        jobs: dict[bytes, tuple[str, tuple[int, int]]] = {}
        for job_id, waiters in self._waiters.items():
            cursor = min(waiter.cursor for waiter in waiters)
            key = self._keys.events(job_id)
            streams[key] = f"{cursor[0]}-{cursor[1]}"
            jobs[key.encode()] = job_id, cursor
        with translated():
            reply: Any = await self._client.xread(streams, count=BATCH, block=BLOCK_MS)
        for key, entries in reply or ():
            if key in jobs:
                self._route(*jobs[key], entries)
            else:
                self._inbox_cursor = entries[-1][0].decode()

    def _route(
        self, job_id: str, read_from: tuple[int, int], entries: list[tuple[bytes, dict[bytes, bytes]]]
    ) -> None:
        for _, fields in entries:
            event = Event.decode(fields[b"e"])
            for waiter in self._waiters.get(job_id, ()):
                waiter.deliver(event, read_from)

    async def _fail_vanished(self) -> None:
        """After an outage: a server that came back without its data never finishes these jobs."""
        job_ids = list(self._waiters)
        with translated():
            pipe = self._client.pipeline(transaction=False)
            for job_id in job_ids:
                pipe.exists(self._keys.job(job_id))
            present = await pipe.execute()
        for job_id, exists in zip(job_ids, present, strict=True):
            if not exists:
                for waiter in self._waiters.get(job_id, ()):
                    waiter.fail(JobNotFound(job_id))

    def _fail_all(self, error: BrokerError) -> None:
        for waiters in self._waiters.values():
            for waiter in waiters:
                waiter.fail(error)
