"""The jobs that this gateway accepted and has not seen end: put back into a server that lost them.

Invariant: a job is held from its acceptance until its end was read here (or was there to be polled for a
while), with every event that this gateway read of it, so a server that comes back empty, or behind, gets it
back as far as its client had been told of it; what it may not contain is decided by `restore.lua`, in the
server. The bound on held bytes comes before the promise: over it a job rests on the server's own persistence
alone. A gateway that dies takes its holdings with it.
Knows nothing of connections (`call` runs a script) and of waiters (`lost` tells them).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from service.broker.base import BrokerUnavailable, Idempotency
from service.broker.tasks import end
from service.protocol import ATTEMPTS_APART, TERMINAL, Event, Job

log = logging.getLogger("twigserve.broker")

CHECK_S = 1.0
LOST_AFTER_S = 10.0  # another gateway may put the job back
READ_WITHIN_S = 10.0  # how long a result that nobody waited for is held: who polls has it by then
_AGAIN_S = 0.2
MAX_HELD_BYTES = 256 * 1024 * 1024
_BATCH = 256
_KEEP_S = 60.0

Call = Callable[..., Awaitable[Any]]


@dataclass
class Held:
    """until: monotonic; after it the queue itself ends the job, or its result has been read.

    since: when it was last put into the server, whose data had the name `data` then.
    attempt: the highest that this gateway knows to be given.
    """

    job: Job
    blobs: Mapping[str, bytes]
    idempotency: Idempotency | None
    until: float
    expires_at: float | None
    since: float
    data: bytes | None
    events: list[Event] = field(default_factory=list)
    attempt: int = 0

    @property
    def size_bytes(self) -> int:
        return sum(len(raw) for raw in self.blobs.values())

    @property
    def attempt_if_lost(self) -> int:
        """The one a server counts on from that has lost the job; nobody has seen as high a one."""
        newest = self.events[-1].attempt if self.events else 0
        return max(self.attempt, newest) + ATTEMPTS_APART

    def knows_more(self, attempt: int, run: str) -> bool:
        """Than a server at that claim."""
        if not self.events or not self.events[-1].run:
            return False
        newest = self.events[-1]
        return newest.attempt > attempt or (newest.attempt == attempt and newest.run != run)

    def arguments(self, now: float) -> list[str | bytes | int]:
        """Those of restore.lua."""
        left_ms = "" if self.expires_at is None else int((self.expires_at - now) * 1000)
        newest = self.events[-1] if self.events else Event(seq=0, attempt=0, type="started")
        images = [part for pair in self.blobs.items() for part in pair]
        events = [part for event in self.events for part in (event.id, event.encode())]
        key, fingerprint = key_and_fingerprint(self.idempotency)
        place = (newest.attempt, newest.run, newest.seq, self.attempt, len(images))
        return [self.job.id, self.job.encode(), left_ms, key, fingerprint, *place, *images, *events]


class Custody:
    def __init__(
        self,
        call: Call,
        awaited: Callable[[], Iterable[str]],
        lost: Callable[[str], None],
        cancel: Callable[[str], Awaitable[object]],
        job_ttl_s: float,
        result_ttl_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._call = call
        self._awaited = awaited
        self._lost = lost
        self._cancel = cancel
        self._job_ttl_s, self._result_ttl_s = job_ttl_s, result_ttl_s
        self._clock = clock
        self._held: dict[str, Held] = {}
        self._held_bytes = 0
        self._disowned: list[str] = []
        self._abandoned: list[str] = []
        self._missing_since: dict[str, float] = {}
        self._data: bytes | None = None  # its name at the last look
        self._lost_at = -math.inf
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="custody")

    async def stop(self) -> None:
        await end(self._task)

    def hold(self, job: Job, blobs: Mapping[str, bytes], idempotency: Idempotency | None) -> None:
        now = self._clock()
        expires_at = None if job.deadline_at is None else now + job.deadline_at - job.created_at
        until = (now + self._job_ttl_s if expires_at is None else expires_at) + _KEEP_S
        held = Held(job, blobs, idempotency, until, expires_at, now, self._data)
        if self._held_bytes + held.size_bytes <= MAX_HELD_BYTES:
            self._held[job.id] = held
            self._held_bytes += held.size_bytes

    def held(self, job_id: str) -> Held | None:
        return self._held.get(job_id)

    def see(self, job_id: str, event: Event) -> None:
        """An event that was read; the same one may come again."""
        held = self._held.get(job_id)
        if held is None:
            return
        if event.terminal:
            self._drop(job_id)
        elif event.seq == len(held.events) + 1:
            held.events.append(event)

    def disown(self, job: Job) -> None:
        """Nobody was promised this job, and it may be queued all the same: it is to go."""
        if job.id not in self._held:
            self._disowned.append(job.id)

    def abandon(self, job_id: str) -> None:
        """Nobody waits for it any more, and the server is not there to hear it."""
        self._drop(job_id)
        self._abandoned.append(job_id)

    def reclaim(self, job: Job) -> None:
        """It is being submitted again."""
        if job.id in self._disowned:
            self._disowned.remove(job.id)

    def _drop(self, job_id: str) -> None:
        held = self._held.pop(job_id, None)
        if held is not None:
            self._held_bytes -= held.size_bytes

    async def _run(self) -> None:
        while True:
            pause_s = CHECK_S
            try:
                await self.check()
            except BrokerUnavailable:
                pause_s = _AGAIN_S  # whoever needs the server now says so
            except Exception:  # this task must outlive its own defects, or no job is put back any more
                log.exception("custody failed")
            await asyncio.sleep(pause_s)

    async def check(self) -> None:
        """Looks once for every job that is held or awaited here."""
        now = self._clock()
        for job_id in [job_id for job_id, held in self._held.items() if held.until <= now]:
            self._drop(job_id)
        await self._survey()  # also where nothing is held: what was lost is known before somebody asks
        await self._withdraw_disowned()
        await self._cancel_abandoned()
        wanted = iter(dict.fromkeys([*self._held, *self._awaited()]))
        missing: dict[str, float] = {}
        while batch := list(itertools.islice(wanted, _BATCH)):
            for job_id, known in zip(batch, await self._survey(*batch), strict=True):
                if await self._is_missing(job_id, known):
                    missing[job_id] = self._missing_since.get(job_id, now)
        for job_id, since in missing.items():
            if now - since >= LOST_AFTER_S:
                self._lost(job_id)
        self._missing_since = missing

    async def data_was_lost(self) -> bool:
        """Just now: what is missing may still be put back, here or by another gateway."""
        await self._survey()
        return self.in_doubt()

    def in_doubt(self) -> bool:
        """As `data_was_lost`, by the last look."""
        return self._clock() - self._lost_at < LOST_AFTER_S

    def see_data(self, name: bytes) -> None:
        """name: `data_name` in common.lua."""
        if self._data is not None and name != self._data:
            self._lost_at = self._clock()
        self._data = name

    async def _survey(self, *job_ids: str) -> list[Any]:
        try:
            reply: list[Any] = await self._call("survey", new_name(), *job_ids)
        except BrokerUnavailable:
            if self._data is None:
                self._data = b""  # what is there when the server comes back may be less than there was
            raise
        self.see_data(reply[0])
        return reply[1:]

    async def _is_missing(self, job_id: str, known: list[Any]) -> bool:
        """known: of survey.lua. Puts it back where that can be done."""
        held = self._held.get(job_id)
        if held is None:
            return not known
        state = known[0].decode() if known else ""
        held.attempt = max(held.attempt, known[1] if known else 0)
        if state == "done":
            held.until = min(held.until, self._clock() + READ_WITHIN_S)
        elif state in TERMINAL or (not known and self._has_expired(held)):
            self._drop(job_id)
        elif not known or held.knows_more(known[1], known[2].decode()):
            await self._put_back(held)
        return False

    def _has_expired(self, held: Held) -> bool:
        """Its result has, of a job whose end was not seen here for so long; nothing was lost since."""
        if not self._data or self._data.startswith(b":"):  # a server that does not name its life
            return False
        return held.data == self._data and self._clock() - held.since >= self._result_ttl_s

    async def _put_back(self, held: Held) -> None:
        held.attempt = held.attempt_if_lost  # used up, whatever becomes of the call
        if await self._call("restore", *held.arguments(self._clock())):
            log.warning("job put back", extra={"job_id": held.job.id, "events": len(held.events)})
        held.since, held.data = self._clock(), self._data

    async def _withdraw_disowned(self) -> None:
        for job_id in list(self._disowned):
            await self._call("withdraw", job_id)
            if job_id in self._disowned:
                self._disowned.remove(job_id)

    async def _cancel_abandoned(self) -> None:
        while self._abandoned:
            await self._cancel(self._abandoned[0])
            del self._abandoned[0]


def new_name() -> str:
    return uuid.uuid4().hex


def key_and_fingerprint(idempotency: Idempotency | None) -> tuple[str, str]:
    return ("", "") if idempotency is None else (idempotency.key, idempotency.fingerprint)
