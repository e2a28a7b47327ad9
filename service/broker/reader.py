"""One blocking read for all the jobs a gateway is waiting for, routed to many waiters.

Invariant: each waiter gets every event behind its own cursor exactly once and in order, whatever happens
to the connection; a gap is an error, never skipped. A new waiter interrupts the blocked read through the
gateway's inbox stream, which, being a stream, cannot lose that wake-up. Knows nothing of what events
mean, or of jobs that vanish (`custody`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from service.broker.base import BrokerError, BrokerUnavailable, Diverged, Unreadable
from service.broker.connection import translated
from service.broker.line import Line
from service.protocol import Event, Keys

log = logging.getLogger("twigserve.broker")

BLOCK_MS = 2000
BATCH = 256
_BACKOFF_FIRST_S = 0.05
_CANCEL_AGAIN_S = 0.05


class Waiter:
    """cursor: (attempt, seq) of the last event delivered. Everything behind it comes once and in order, or an
    error: a queue that lost events must not look like a stream without them.
    """

    def __init__(self, cursor: tuple[int, int]) -> None:
        self.cursor = cursor
        self.failed = False
        self._run = ""
        self._inbox: asyncio.Queue[Event | BrokerError] = asyncio.Queue()

    def deliver(self, event: Event, read_from: tuple[int, int]) -> None:
        """read_from: where the read that found it began; a waiter further back must not skip ahead."""
        attempt, seq = self.cursor
        if self.failed or not read_from <= self.cursor < (event.attempt, event.seq):
            return
        known = event.attempt == attempt and self._run and event.run
        if event.seq != seq + 1 or (known and event.run != self._run):
            self.fail(Diverged(f"event {event.id} does not follow {attempt}-{seq}"))
            return
        self.cursor = event.attempt, event.seq
        self._run = event.run
        self._inbox.put_nowait(event)

    def fail(self, error: BrokerError) -> None:
        self.failed = True
        self._inbox.put_nowait(error)

    async def next(self) -> Event:
        item = await self._inbox.get()
        if isinstance(item, BrokerError):
            raise item
        return item


class EventReader:
    """seen: told of each event before its waiters are; where one of them is behind, a second time."""

    def __init__(
        self,
        line: Line,
        keys: Keys,
        inbox: str,
        backoff_max_s: float,
        seen: Callable[[str, Event], None],
    ) -> None:
        self._line = line
        self._keys = keys
        self._inbox = inbox
        self._inbox_cursor = "0-0"
        self._backoff_max_s = backoff_max_s
        self._seen = seen
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
        self.release()
        await self._line.close()

    @contextmanager
    def waiting(self, job_id: str, cursor: tuple[int, int]) -> Iterator[Waiter]:
        waiter = Waiter(cursor)
        self._waiters.setdefault(job_id, []).append(waiter)
        self._wanted.set()
        try:
            yield waiter
        finally:
            self._forget(job_id, waiter)

    def awaited(self) -> list[str]:
        return list(self._waiters)

    def _forget(self, job_id: str, waiter: Waiter) -> None:
        rest = [other for other in self._waiters[job_id] if other is not waiter]
        if rest:
            self._waiters[job_id] = rest
        else:
            del self._waiters[job_id]

    async def _run(self) -> None:
        backoff_s = _BACKOFF_FIRST_S
        while True:
            if not self._waiters:
                self._wanted.clear()
                await self._wanted.wait()
            try:
                await self._read()
                backoff_s = _BACKOFF_FIRST_S
            except BrokerUnavailable as error:
                log.warning("event reader lost the broker", extra={"error": str(error)})
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, self._backoff_max_s)
            except Exception as error:  # a defect of ours: no waiter may hang on it, the next one may work
                log.exception("event reader failed")
                self._fail_all(BrokerError(f"event reader failed: {type(error).__name__}"))
                await asyncio.sleep(_BACKOFF_FIRST_S)

    async def _read(self) -> None:
        streams = {self._inbox: self._inbox_cursor}
        jobs: dict[bytes, tuple[str, tuple[int, int]]] = {}
        for job_id, waiters in self._waiters.items():
            cursors = [waiter.cursor for waiter in waiters if not waiter.failed]
            if not cursors:
                continue  # told, and not gone yet
            cursor = min(cursors)
            key = self._keys.events(job_id)
            streams[key] = f"{cursor[0]}-{cursor[1]}"
            jobs[key.encode()] = job_id, cursor
        with translated():
            reply = await self._line.ask(
                *("XREAD", "COUNT", BATCH, "BLOCK", BLOCK_MS, "STREAMS"), *streams, *streams.values()
            )
        for key, entries in reply or ():
            if key in jobs:
                self._route(*jobs[key], entries)
            else:
                self._inbox_cursor = entries[-1][0].decode()

    def _route(
        self, job_id: str, read_from: tuple[int, int], entries: list[tuple[bytes, list[bytes]]]
    ) -> None:
        waiters = self._waiters.get(job_id, ())
        for _, fields in entries:
            try:
                event = Event.decode(fields[1])
            except ValueError as error:  # the other jobs of this read are not to blame
                log.error("unreadable event", extra={"job_id": job_id, "error": str(error)})
                self.fail(job_id, Unreadable(f"event of {job_id}: {type(error).__name__}"))
                return
            self._seen(job_id, event)
            for waiter in waiters:
                waiter.deliver(event, read_from)

    def release(self) -> None:
        self._fail_all(BrokerUnavailable("the gateway is stopping"))

    def fail(self, job_id: str, error: BrokerError) -> None:
        for waiter in self._waiters.get(job_id, ()):
            waiter.fail(error)

    def _fail_all(self, error: BrokerError) -> None:
        for job_id in self._waiters:
            self.fail(job_id, error)
