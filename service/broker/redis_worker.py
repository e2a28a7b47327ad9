"""The worker's side of the queue over Redis: claim, write, renew, release. Synchronous and thread-safe.

Invariant: every state change is one Lua script, so a worker that dies between two calls leaves a job
that is either wholly its own (until its lease runs out) or wholly someone else's.
Knows nothing of the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from redis.exceptions import ReadOnlyError

from service.broker.base import BrokerUnavailable, Claim, ClaimBatch, Fenced, Lease
from service.broker.connection import script_header, script_source, sync_client, translated
from service.protocol import ErrorData, Event, Job, Keys, WorkerInfo
from service.settings import RedisSettings

_SCRIPTS = ("claim", "write", "renew", "release")


class RedisWorkerBroker:
    def __init__(self, settings: RedisSettings) -> None:
        self._settings = settings
        self._keys = Keys(settings.shard)
        self._client = sync_client(settings)
        self._header = script_header(self._keys, settings)
        self._scripts = {name: self._client.register_script(script_source(name)) for name in _SCRIPTS}
        self._cursor: bytes | str = "0-0"

    def claim(self, limit: int) -> ClaimBatch:
        lease_ms = int(self._settings.lease_s * 1000)
        reply = self._run("claim", limit, lease_ms, self._settings.max_deliveries, self._cursor)
        self._cursor, rows = reply[0], reply[1]
        claims = [claim for row in rows if (claim := self._open(row)) is not None]
        return ClaimBatch(claims, *reply[2:6])

    def wait_for_work(self, timeout_s: float) -> bool:
        # The socket's own timeout must not fire first, it would look like a lost server.
        timeout_s = min(timeout_s, self._settings.command_timeout_s * 0.8)
        with translated():
            return self._client.blpop([self._keys.wake], timeout=timeout_s) is not None

    def blobs(self, sha256s: Sequence[str]) -> list[bytes | None]:
        if not sha256s:
            return []
        with translated():
            return cast("list[bytes | None]", self._client.mget([self._keys.blob(sha) for sha in sha256s]))

    def publish(self, lease: Lease, events: Sequence[Event]) -> bool:
        return self._write(lease, "", events) == 1

    def finish(self, lease: Lease, events: Sequence[Event]) -> None:
        if not events or not events[-1].terminal:
            raise ValueError("the last event of a job must be terminal")
        self._write(lease, events[-1].type, events)

    def renew(self, leases: Sequence[Lease]) -> tuple[list[Lease], list[Lease]]:
        if not leases:
            return [], []
        flat = [part for lease in leases for part in (lease.job_id, lease.attempt, lease.entry_id)]
        answers = self._run("renew", *flat)
        fenced = [lease for lease, answer in zip(leases, answers, strict=True) if answer == -1]
        cancelled = [lease for lease, answer in zip(leases, answers, strict=True) if answer == 1]
        return fenced, cancelled

    def release(self, lease: Lease, *, failed: bool = False) -> None:
        counted = 0 if failed else 1
        if self._run("release", lease.job_id, lease.attempt, lease.entry_id, counted) == -1:
            raise Fenced(lease.job_id)

    def heartbeat(self, info: WorkerInfo, ttl_s: float) -> None:
        with translated():
            pipe = self._client.pipeline(transaction=False)
            pipe.set(self._keys.worker(info.worker_id), info.encode(), px=int(ttl_s * 1000))
            pipe.sadd(self._keys.workers, info.worker_id)
            pipe.execute()

    def retire(self, worker_id: str) -> None:
        with translated():
            pipe = self._client.pipeline(transaction=False)
            pipe.delete(self._keys.worker(worker_id))
            pipe.srem(self._keys.workers, worker_id)
            pipe.execute()

    def close(self) -> None:
        self._client.close()

    def _run(self, name: str, *args: str | bytes | int) -> Any:
        try:
            with translated():
                return self._scripts[name](keys=[self._keys.jobs], args=[*self._header, *args])
        except BrokerUnavailable as error:
            if isinstance(error.__cause__, ReadOnlyError):
                self._client.connection_pool.disconnect()
            raise

    def _write(self, lease: Lease, final: str, events: Sequence[Event]) -> int:
        first = events[0].seq if events else 1
        if [event.seq for event in events] != list(range(first, first + len(events))):
            raise ValueError("events must be numbered without a gap")
        encoded = [event.encode() for event in events]
        answer = self._run("write", lease.job_id, lease.attempt, final, first, *encoded)
        if answer == -1:
            raise Fenced(lease.job_id)
        return int(answer)

    def _open(self, row: Sequence[Any]) -> Claim | None:
        """Row: id, job JSON, attempt, entry, seq, failed deliveries. An unreadable job ends here."""
        lease = Lease(row[0].decode(), row[2], row[3].decode())
        last_seq: int = row[4]
        try:
            job = Job.decode(row[1])
        except ValueError as error:
            data = ErrorData(message=f"Unreadable job: {type(error).__name__}.", code="unreadable_job")
            self.finish(lease, [_error_event(lease, last_seq + 1, data)])
            return None
        delivered = self._delivered(lease.job_id) if last_seq else ()
        failed: int = row[5]
        last_chance = failed > 0 and failed + 1 >= self._settings.max_deliveries
        return Claim(job, lease, last_seq, delivered, last_chance)

    def _delivered(self, job_id: str) -> tuple[int, ...]:
        # No older attempt can write any more: the claim that brought us here fenced it.
        with translated():
            entries: Any = self._client.xrange(self._keys.events(job_id))
        events = [Event.decode(fields[b"e"]) for _, fields in entries]
        return tuple(
            token for event in events if event.type == "token" for token in event.data.get("token_ids", ())
        )


def _error_event(lease: Lease, seq: int, data: ErrorData) -> Event:
    return Event(seq=seq, attempt=lease.attempt, type="error", data=data.model_dump(mode="json"))
