"""The gateway's side of the queue over Redis: submit, follow, cancel, look. asyncio.

Invariant: what a caller saw accepted is in Redis; nothing of a job lives only in this process.
Knows nothing of HTTP.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from redis.exceptions import ReadOnlyError

from service.broker.base import BrokerUnavailable, Idempotency, JobNotFound, KeyedJob
from service.broker.connection import async_client, script_header, script_source, translated
from service.broker.reader import EventReader
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

_SCRIPTS = ("submit", "cancel", "stats")
_INBOX_TTL_S = 3600
_BLOB_SLACK_S = 60  # clocks differ between hosts


class RedisGatewayBroker:
    def __init__(self, settings: RedisSettings) -> None:
        self._settings = settings
        self._keys = Keys(settings.shard)
        self._client = async_client(settings)
        self._header = script_header(self._keys, settings)
        self._scripts = {name: self._client.register_script(script_source(name)) for name in _SCRIPTS}
        self._inbox = self._keys.inbox(uuid.uuid4().hex)
        self._reader = EventReader(self._client, self._keys, self._inbox, settings.backoff_max_s)

    async def start(self) -> None:
        self._reader.start()

    async def close(self) -> None:
        await self._reader.stop()
        await self._client.aclose()

    async def ping(self) -> None:
        with translated():
            pong: Any = self._client.ping()
            await pong

    async def submit(
        self, job: Job, blobs: Mapping[str, bytes], idempotency: Idempotency | None = None
    ) -> bool:
        # Blobs first: a worker may claim the job in the instant it is queued.
        if blobs:
            with translated():
                pipe = self._client.pipeline(transaction=False)
                for sha256, raw in blobs.items():
                    pipe.set(self._keys.blob(sha256), raw, ex=self._blob_ttl_s(job))
                await pipe.execute()
        deadline_ms = "" if job.deadline_at is None else int(job.deadline_at * 1000)
        taken = ("", "") if idempotency is None else (idempotency.key, idempotency.fingerprint)
        return bool(await self._run("submit", job.id, job.encode(), deadline_ms, *taken))

    async def keyed_job(self, key: str) -> KeyedJob | None:
        with translated():
            fields: Any = self._client.hmget(self._keys.idempotency(key), ["job", "fingerprint"])
            job_id, fingerprint = await fields
        return None if job_id is None else KeyedJob(job_id.decode(), fingerprint.decode())

    async def events(self, job_id: str, after: str | None = None) -> AsyncGenerator[Event, None]:
        cursor = (0, 0) if after is None else parse_event_id(after)
        with self._reader.waiting(job_id, cursor) as waiter:
            if await self._is_over(job_id, cursor):
                return
            while True:
                event = await waiter.next()
                yield event
                if event.terminal:
                    return

    async def cancel(self, job_id: str) -> bool:
        return bool(await self._run("cancel", job_id))

    async def status(self, job_id: str) -> JobStatus | None:
        with translated():
            job, state, attempt, seq, cancel, terminal = await self._fields(job_id)
        if state is None:
            return None
        ended = Event.decode(terminal) if terminal else None
        return JobStatus(Job.decode(job), state.decode(), int(attempt), int(seq), cancel == b"1", ended)

    async def workers(self) -> list[WorkerInfo]:
        with translated():
            members: Any = self._client.smembers(self._keys.workers)
            ids = sorted(member.decode() for member in await members)
            if not ids:
                return []
            raws: Any = await self._client.mget([self._keys.worker(worker_id) for worker_id in ids])
            gone = [worker_id for worker_id, raw in zip(ids, raws, strict=True) if raw is None]
            if gone:
                removal: Any = self._client.srem(self._keys.workers, *gone)
                await removal
        return [WorkerInfo.decode(raw) for raw in raws if raw is not None]

    async def queue_stats(self) -> QueueStats:
        waiting, pending, age_ms, *rest = await self._run("stats")
        return QueueStats(waiting, pending, age_ms / 1000, *rest)

    def _blob_ttl_s(self, job: Job) -> int:
        """Images are most of the memory: none outlives the time in which its job can still be claimed."""
        if job.deadline_at is None:
            return self._settings.job_ttl_s
        return max(1, math.ceil(job.deadline_at - job.created_at)) + _BLOB_SLACK_S

    async def _is_over(self, job_id: str, cursor: tuple[int, int]) -> bool:
        """Wakes the reader for a new waiter and looks whether there is anything to wait for."""
        with translated():
            pipe = self._client.pipeline(transaction=False)
            pipe.xadd(self._inbox, {"w": "1"}, maxlen=1, approximate=False)
            pipe.expire(self._inbox, _INBOX_TTL_S)
            pipe.hmget(self._keys.job(job_id), ["state", "seq"])
            state, seq = (await pipe.execute())[-1]
        if state is None:
            raise JobNotFound(job_id)
        return state.decode() in TERMINAL and int(seq) <= cursor[1]

    async def _fields(self, job_id: str) -> Any:
        fields: Any = self._client.hmget(
            self._keys.job(job_id), ["job", "state", "attempt", "seq", "cancel", "terminal"]
        )
        return await fields

    async def _run(self, name: str, *args: str | bytes | int) -> Any:
        try:
            with translated():
                return await self._scripts[name](keys=[self._keys.jobs], args=[*self._header, *args])
        except BrokerUnavailable as error:
            if isinstance(error.__cause__, ReadOnlyError):
                await self._client.connection_pool.disconnect()
            raise
