"""The gateway's side of the queue over Redis: submit, follow, cancel, look. asyncio.

Invariant: what a caller saw accepted is in Redis (and in as many replicas as the settings ask for); nothing
of a job lives only in this process. What Redis loses of it all the same, `custody` puts back.
Knows nothing of HTTP.
"""

from __future__ import annotations

import logging
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from service.broker.base import (
    BrokerUnavailable,
    EndedWaiting,
    Full,
    Idempotency,
    JobNotFound,
    KeyedJob,
    Rate,
    Reservation,
)
from service.broker.connection import (
    async_client,
    met_a_replica,
    script_header,
    script_source,
    translated,
)
from service.broker.custody import Custody, key_and_fingerprint, new_name
from service.broker.line import Command, Line, Script
from service.broker.reader import BLOCK_MS, EventReader, readable
from service.broker.sentinel import close_sentinels
from service.protocol import (
    TERMINAL,
    Event,
    Job,
    JobStatus,
    Keys,
    QueueStats,
    WorkerInfo,
    parse_event_id,
)
from service.settings import RedisSettings

log = logging.getLogger("twigserve.broker")

_SCRIPTS = (
    *("spend", "admit", "give_back", "submit", "withdraw", "cancel", "expire"),
    *("stats", "survey", "keyed", "restore"),
)
_FIRST = (0, 0)
_DATA_LOST = "the server lost its data: jobs may still be put back"
_HOLD_MS = 60_000  # how long a reservation may lack its job


class _TooFewReplicas(BrokerUnavailable):
    pass


class RedisGatewayBroker:
    def __init__(self, settings: RedisSettings) -> None:
        self._settings = settings
        self._keys = Keys(settings.shard)
        self._client = async_client(settings)
        self._lines_client = async_client(settings, socket_timeout=None)
        self._line = Line(self._lines_client, settings.command_timeout_s)
        self._header = script_header(self._keys, settings)
        self._scripts = {name: Script(script_source(name)) for name in _SCRIPTS}
        self._submit_apart = self._client.register_script(script_source("submit"))
        self._ended_waiting: Counter[EndedWaiting] = Counter()
        inbox = self._keys.inbox(uuid.uuid4().hex)
        self._custody = Custody(
            self._run, self._awaited, self._lost, self.cancel, settings.job_ttl_s, settings.result_ttl_s
        )
        blocking = Line(self._lines_client, settings.command_timeout_s + BLOCK_MS / 1000)
        self._reader = EventReader(
            blocking, self._line, self._keys, inbox, settings.backoff_max_s, self._custody.see
        )

    async def start(self) -> None:
        self._reader.start()
        self._custody.start()

    async def close(self) -> None:
        await self._custody.stop()
        await self._reader.stop()
        await self._line.close()
        for client in (self._client, self._lines_client):
            await client.aclose()
            await close_sentinels(client)

    def release(self) -> None:
        self._reader.release()

    async def ping(self) -> None:
        with translated():
            await self._line.ask("PING")

    async def spend_request(self, owner: str, per_minute: int) -> Rate:
        allowed, remaining, full_ms, one_ms = await self._run("spend", owner, per_minute)
        return Rate(allowed == 1, remaining, full_ms / 1000, one_ms / 1000)

    async def admit(self, asked: Reservation) -> Full | None:
        limits = (asked.limit, asked.owner_limit or 0, _HOLD_MS)
        reply = await self._run("admit", asked.job_id, asked.tokens, asked.owner, *limits)
        which, reserved_tokens, expired = reply
        self._ended_waiting["expired"] += expired
        if which == 0:
            return None
        return Full("queue" if which == 1 else "owner", reserved_tokens)

    async def give_back(self, job_id: str) -> None:
        await self._run("give_back", job_id)

    async def submit(
        self, job: Job, blobs: Mapping[str, bytes], idempotency: Idempotency | None = None
    ) -> bool:
        self._custody.reclaim(job)
        try:
            added = await self._submit(job, blobs, idempotency)
        except _TooFewReplicas:
            await self._withdraw(job)
            raise
        except BrokerUnavailable:
            # Whether the script ran is not known: the same again changes nothing, or accepts it.
            try:
                added = await self._submit(job, blobs, idempotency) or await self._has_key(job, idempotency)
            except BrokerUnavailable:
                if idempotency is None:  # a key lets the client find the job, if there is one
                    self._custody.disown(job)
                raise
        if added:
            self._custody.hold(job, blobs, idempotency)
        return added

    async def _has_key(self, job: Job, idempotency: Idempotency | None) -> bool:
        """Of a job that is queued, or whose key another one has."""
        if idempotency is None:
            return True
        holder = await self.keyed_job(idempotency.key)
        return holder is not None and holder.job_id == job.id

    async def _submit(self, job: Job, blobs: Mapping[str, bytes], idempotency: Idempotency | None) -> bool:
        left_ms = "" if job.deadline_at is None else int((job.deadline_at - job.created_at) * 1000)
        key, fingerprint = key_and_fingerprint(idempotency)
        images = [part for pair in blobs.items() for part in pair]
        args = (job.id, job.encode(), left_ms, key, fingerprint, *images)
        if not self._settings.min_replicas:
            return bool(await self._run("submit", *args))
        async with self._client.client() as alone:  # WAIT speaks of what its own connection has written
            with translated():
                own = [*self._header, *args]
                added = bool(await self._submit_apart(keys=[self._keys.jobs], args=own, client=alone))
                timeout_ms = int(self._settings.replica_timeout_s * 1000)
                replicas = await alone.wait(self._settings.min_replicas, timeout_ms)
        if replicas < self._settings.min_replicas:
            raise _TooFewReplicas(f"{replicas} of {self._settings.min_replicas} replicas have the job")
        return added

    async def _withdraw(self, job: Job) -> None:
        try:
            await self._run("withdraw", job.id)
        except BrokerUnavailable:
            self._custody.disown(job)

    async def keyed_job(self, key: str) -> KeyedJob | None:
        data, *holder = await self._run("keyed", new_name(), key)
        self._custody.see_data(data)
        if holder:
            return KeyedJob(holder[0].decode(), holder[1].decode())
        if self._custody.in_doubt():
            raise BrokerUnavailable(_DATA_LOST)
        return None

    async def events(
        self, job_id: str, after: str | None = None, patience_s: float | None = None
    ) -> AsyncGenerator[Event, None]:
        cursor = _FIRST if after is None else parse_event_id(after)
        with self._reader.waiting(job_id, cursor) as waiter:
            # What this gateway has just queued has not been read to its end.
            if cursor != _FIRST or self._custody.held(job_id) is None:
                try:
                    if await self._is_over(job_id, cursor):
                        return
                except BrokerUnavailable:
                    if self._custody.held(job_id) is None:
                        raise  # else the reader finds the server again, and custody the job
            if patience_s is not None:
                waiter.give_up_in(patience_s)
            while True:
                event = await waiter.next()
                yield event
                if event.terminal:
                    return

    async def cancel(self, job_id: str) -> bool:
        did = await self._run("cancel", job_id)
        self._ended_waiting["cancelled"] += did == 2
        return bool(did)

    async def abandon(self, job_id: str) -> None:
        try:
            await self.cancel(job_id)
        except BrokerUnavailable:
            self._custody.abandon(job_id)

    async def expire(self, job_id: str) -> float:
        left_ms = await self._run("expire", job_id)
        self._ended_waiting["expired"] += left_ms == -1
        return max(0.0, float(left_ms)) / 1000

    def take_ended_waiting(self) -> Mapping[EndedWaiting, int]:
        taken, self._ended_waiting = self._ended_waiting, Counter()
        return taken

    async def status(self, job_id: str) -> JobStatus | None:
        names = ("job", "state", "attempt", "seq", "cancel", "terminal", "deadline")
        with translated():
            fields, clock = await self._all(("HMGET", self._keys.job(job_id), *names), ("TIME",))
        job, state, attempt, seq, cancel, terminal, deadline = fields
        if state is None:
            return await self._missing(job_id)
        left_s = int(deadline) / 1000 - int(clock[0]) - int(clock[1]) / 1e6 if deadline else None
        with readable(job_id):
            ended = Event.decode(terminal) if terminal else None
            known = Job.decode(job)
        return JobStatus(known, state.decode(), int(attempt), int(seq), cancel == b"1", ended, left_s)

    async def workers(self) -> list[WorkerInfo]:
        with translated():
            ids = sorted(member.decode() for member in await self._line.ask("SMEMBERS", self._keys.workers))
            if not ids:
                return []
            raws = await self._line.ask("MGET", *(self._keys.worker(worker_id) for worker_id in ids))
            gone = [worker_id for worker_id, raw in zip(ids, raws, strict=True) if raw is None]
            if gone:
                await self._line.ask("SREM", self._keys.workers, *gone)
        return [info for raw in raws if raw is not None and (info := _worker_info(raw)) is not None]

    async def queue_stats(self) -> QueueStats:
        waiting, pending, age_ms, *rest = await self._run("stats")
        return QueueStats(waiting, pending, age_ms / 1000, *rest)

    async def _is_over(self, job_id: str, cursor: tuple[int, int]) -> bool:
        """Whether there is nothing to wait for."""
        with translated():
            fields = await self._line.ask("HMGET", self._keys.job(job_id), "state", "attempt", "seq")
        state, attempt, seq = fields
        if state is None:
            if self._custody.held(job_id) or await self._custody.data_was_lost():
                return False  # it is put back, or custody says that it is lost
            raise JobNotFound(job_id)
        return state.decode() in TERMINAL and (int(attempt), int(seq)) <= cursor

    async def _missing(self, job_id: str) -> JobStatus | None:
        """None where the job is not known; one that a server has just lost is, or may be, on its way back."""
        held = self._custody.held(job_id)
        if held is not None:
            return JobStatus(held.job, "queued", held.attempt_if_lost, len(held.events), False, None)
        if await self._custody.data_was_lost():
            raise BrokerUnavailable(_DATA_LOST)
        return None

    def _awaited(self) -> list[str]:
        return self._reader.awaited()

    def _lost(self, job_id: str) -> None:
        self._reader.fail(job_id, JobNotFound(job_id))

    async def _all(self, *commands: Command) -> list[Any]:
        replies = await self._line.ask_all(commands)
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies

    async def _run(self, name: str, *args: str | bytes | int) -> Any:
        try:
            with translated():
                return await self._line.run(self._scripts[name], self._keys.jobs, *self._header, *args)
        except BrokerUnavailable as error:
            if met_a_replica(error):
                self._line.drop()
                await self._client.connection_pool.disconnect()
            raise


def _worker_info(raw: bytes) -> WorkerInfo | None:
    """None: a newer worker whose heartbeat we cannot read; other gateways may work with it."""
    try:
        return WorkerInfo.decode(raw)
    except ValueError as error:
        log.warning("unreadable heartbeat", extra={"error": type(error).__name__})
        return None
