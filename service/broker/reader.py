"""One blocking read for all the jobs a gateway is waiting for, routed to many waiters.

Invariant: each waiter gets every event behind its own cursor exactly once and in order, whatever happens
to the connection; a gap is an error, never skipped. A new waiter interrupts the blocked read through the
gateway's inbox stream, which, being a stream, cannot lose that wake-up; one wake-up serves all who come
before the read that it ends has ended. Knows nothing of what events mean, or of jobs that vanish (`custody`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from service.broker.base import BrokerError, BrokerUnavailable, Diverged, Unreadable
from service.broker.connection import translated
from service.broker.line import Line
from service.broker.tasks import end
from service.protocol import Event, Keys

log = logging.getLogger("twigserve.broker")

BLOCK_MS = 2000
BATCH = 256
_BACKOFF_FIRST_S = 0.05
_INBOX_TTL_S = 3600
_INBOX_KEPT_S = 60.0  # how often its end is put off


class Waiter:
    """cursor: (attempt, seq) of the last event delivered. Everything behind it comes once and in order, or an
    error: a queue that lost events must not look like a stream without them.
    """

    def __init__(self, cursor: tuple[int, int]) -> None:
        self.cursor = cursor
        self.failed = False
        self._run = ""
        self._inbox: deque[Event | Exception] = deque()
        self._asking: asyncio.Future[None] | None = None
        self._patience: asyncio.TimerHandle | None = None

    def give_up_in(self, patience_s: float) -> None:
        late = TimeoutError("no event")
        self._patience = asyncio.get_running_loop().call_later(patience_s, self.fail, late)

    def leave(self) -> None:
        if self._patience is not None:
            self._patience.cancel()

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
        self._put(event)

    def fail(self, error: Exception) -> None:
        self.failed = True
        self._put(error)

    def _put(self, item: Event | Exception) -> None:
        self._inbox.append(item)
        if self._asking is not None and not self._asking.done():
            self._asking.set_result(None)

    async def next(self) -> Event:
        while not self._inbox:
            self._asking = asyncio.get_running_loop().create_future()
            await self._asking
        item = self._inbox.popleft()
        if isinstance(item, Exception):
            raise item
        return item


class Followed:
    """A job with waiters. cursor: where its next read begins; None where none of them wants any more.

    read_from: where the read that is open began for it; None where that knows nothing of it.
    """

    def __init__(self, job_id: str, key: bytes) -> None:
        self.job_id, self.key = job_id, key
        self.waiters: list[Waiter] = []
        self.cursor: tuple[int, int] | None = None
        self.read_from: tuple[int, int] | None = None

    def see(self) -> None:
        """A waiter came, moved, failed or went."""
        wanted = [waiter.cursor for waiter in self.waiters if not waiter.failed]
        self.cursor = min(wanted) if wanted else None

    def begin(self) -> str:
        """Of a read; empty where it is not to be in it."""
        self.read_from = self.cursor
        return "{}-{}".format(*self.cursor) if self.cursor else ""

    def is_read(self) -> bool:
        """The open read will give what its waiters want."""
        return self.read_from is not None and (self.cursor is None or self.read_from <= self.cursor)


class EventReader:
    """blocking: for the one read; calls: for what ends it early. seen: told of each event before its waiters
    are; where one of them is behind, a second time.
    """

    def __init__(
        self,
        blocking: Line,
        calls: Line,
        keys: Keys,
        inbox: str,
        backoff_max_s: float,
        seen: Callable[[str, Event], None],
    ) -> None:
        self._line, self._calls = blocking, calls
        self._keys = keys
        self._inbox = inbox
        self._inbox_cursor = "0-0"
        self._inbox_kept_at = -_INBOX_KEPT_S
        self._backoff_max_s = backoff_max_s
        self._seen = seen
        self._followed: dict[bytes, Followed] = {}
        self._reading = self._woken = False
        self._task: asyncio.Task[None] | None = None
        self._wanted = asyncio.Event()

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="event-reader")

    async def stop(self) -> None:
        await end(self._task)
        self.release()
        await self._line.close()

    @contextmanager
    def waiting(self, job_id: str, cursor: tuple[int, int]) -> Iterator[Waiter]:
        key = self._key(job_id)
        followed = self._followed.get(key)
        if followed is None:
            followed = self._followed[key] = Followed(job_id, key)
        waiter = Waiter(cursor)
        followed.waiters.append(waiter)
        followed.see()
        self._wanted.set()
        if self._reading and not self._woken and not followed.is_read():
            self._wake()
        try:
            yield waiter
        finally:
            waiter.leave()
            followed.waiters.remove(waiter)
            followed.see()
            if not followed.waiters:
                del self._followed[key]

    def awaited(self) -> list[str]:
        return [followed.job_id for followed in self._followed.values()]

    def _key(self, job_id: str) -> bytes:
        return self._keys.events(job_id).encode()

    def _wake(self) -> None:
        """Ends the open read. Where a full server refuses it, that read's own end has to do."""
        self._woken = True
        self._calls.send(("XADD", self._inbox, "MAXLEN", 1, "*", "w", "1")).add_done_callback(self._is_woken)
        now = asyncio.get_running_loop().time()
        if now - self._inbox_kept_at >= _INBOX_KEPT_S:
            self._inbox_kept_at = now
            self._calls.send(("EXPIRE", self._inbox, _INBOX_TTL_S)).add_done_callback(_heard)

    def _is_woken(self, wake: asyncio.Future[Any]) -> None:
        if not _heard(wake):
            self._woken = False

    async def _run(self) -> None:
        backoff_s = _BACKOFF_FIRST_S
        while True:
            if not self._followed:
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
        keys: list[str | bytes] = []
        cursors: list[str | bytes] = []
        for followed in self._followed.values():
            if begins := followed.begin():
                keys.append(followed.key)
                cursors.append(begins)
        streams = [self._inbox, *keys, self._inbox_cursor, *cursors]
        self._reading, self._woken = True, False
        try:
            with translated():
                reply = await self._line.ask("XREAD", "COUNT", BATCH, "BLOCK", BLOCK_MS, "STREAMS", *streams)
        finally:
            self._reading = False
        for key, entries in reply or ():
            found = self._followed.get(key)
            if found is not None:
                self._route(found, entries)
            elif key == self._inbox.encode():
                self._inbox_cursor = entries[-1][0].decode()

    def _route(self, followed: Followed, entries: list[tuple[bytes, list[bytes]]]) -> None:
        read_from = followed.read_from
        if read_from is None:
            return  # the one who waited has gone and another has come: the next read is his
        for _, fields in entries:
            try:
                event = Event.decode(fields[1])
            except ValueError as error:  # the other jobs of this read are not to blame
                kind = type(error).__name__  # its words would quote the answer
                log.error("unreadable event", extra={"job_id": followed.job_id, "error": kind})
                self.fail(followed.job_id, Unreadable(f"event of {followed.job_id}: {kind}"))
                return
            self._seen(followed.job_id, event)
            for waiter in followed.waiters:
                waiter.deliver(event, read_from)
        followed.see()

    def release(self) -> None:
        self._fail_all(BrokerUnavailable("the gateway is stopping"))

    def fail(self, job_id: str, error: BrokerError) -> None:
        followed = self._followed.get(self._key(job_id))
        if followed is not None:
            _fail(followed, error)

    def _fail_all(self, error: BrokerError) -> None:
        for followed in self._followed.values():
            _fail(followed, error)


def _fail(followed: Followed, error: BrokerError) -> None:
    for waiter in followed.waiters:
        waiter.fail(error)
    followed.see()


def _heard(reply: asyncio.Future[Any]) -> bool:
    """Takes notice of an error; whoever needs the server meets it too."""
    return not reply.cancelled() and reply.exception() is None


@contextmanager
def readable(job_id: str) -> Iterator[None]:
    """What does not decode is Unreadable."""
    try:
        yield
    except ValueError as error:
        raise Unreadable(f"{job_id}: {type(error).__name__}") from error
