"""The worker's side of the queue over Redis: claim, write, renew, release. Synchronous and thread-safe.

Invariant: every state change is one Lua script, so a worker that dies between two calls leaves a job
that is either wholly its own (until its lease runs out) or wholly someone else's.
Knows nothing of the engine.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, cast

from redis.exceptions import NoScriptError

from service.broker.base import Behind, BrokerUnavailable, Claim, ClaimBatch, Fenced, Lease, Parcel
from service.broker.connection import met_a_replica, script_header, script_source, sync_client, translated
from service.protocol import ErrorData, Event, Job, Keys, WorkerInfo
from service.settings import RedisSettings

_SCRIPTS = ("claim", "write", "renew", "release", "heartbeat")


class RedisWorkerBroker:
    """model: whose jobs to claim (and those that name none); '' claims any."""

    def __init__(self, settings: RedisSettings, model: str = "") -> None:
        self._model = model
        self._settings = settings
        self._keys = Keys(settings.shard)
        self._client = sync_client(settings)
        self._header = script_header(self._keys, settings)
        self._scripts = {name: self._client.register_script(script_source(name)) for name in _SCRIPTS}
        self._cursor: bytes | str = "0-0"
        self._away_since: float | None = None
        self._spare: tuple[float, float] = (0.0, 0.0)  # until when, and by how much leases are longer

    def claim(self, limit: int) -> ClaimBatch:
        lease_ms = int((self._settings.lease_s + self._spared_s()) * 1000)
        share = str(self._settings.batch_share)
        run = uuid.uuid4().hex
        ours = (self._cursor, run, share, self._model)
        reply = self._run("claim", limit, lease_ms, self._settings.max_deliveries, *ours)
        self._cursor, rows = reply[0], reply[1]
        claims = [claim for row in rows if (claim := self._open(row, run)) is not None]
        return ClaimBatch(claims, *reply[2:6])

    def wait_for_work(self, timeout_s: float) -> bool:
        # The socket's own timeout must not fire first, it would look like a lost server.
        timeout_s = min(timeout_s, self._settings.command_timeout_s * 0.8)
        with translated():
            return self._client.blpop(self._keys.wakes(self._model), timeout=timeout_s) is not None

    def blobs(self, sha256s: Sequence[str]) -> list[bytes | None]:
        if not sha256s:
            return []
        with translated():
            return cast("list[bytes | None]", self._client.mget([self._keys.blob(sha) for sha in sha256s]))

    def publish(self, lease: Lease, events: Sequence[Event]) -> bool:
        return _or_raise(self.write([(lease, events)])[0])

    def finish(self, lease: Lease, events: Sequence[Event]) -> None:
        if not events or not events[-1].terminal:
            raise ValueError("the last event of a job must be terminal")
        _or_raise(self.write([(lease, events)])[0])

    def write(self, parcels: Sequence[Parcel]) -> list[bool | Fenced | Behind]:
        calls: list[Sequence[str | bytes | int]] = []
        for lease, events in parcels:
            first = events[0].seq if events else 1
            if [event.seq for event in events] != list(range(first, first + len(events))):
                raise ValueError("events must be numbered without a gap")
            final = events[-1].type if events and events[-1].terminal else ""
            encoded = [event.encode() for event in events]
            calls.append((lease.job_id, lease.attempt, lease.run, final, first, *encoded))
        replies = self._run_each("write", calls)
        return [_told(lease, *reply) for (lease, _), reply in zip(parcels, replies, strict=True)]

    def renew(self, leases: Sequence[Lease]) -> tuple[list[Lease], list[Lease]]:
        if not leases:
            return [], []
        flat = [part for lease in leases for part in _owner(lease)]
        answers = self._run("renew", *flat)
        fenced = [lease for lease, answer in zip(leases, answers, strict=True) if answer == -1]
        cancelled = [lease for lease, answer in zip(leases, answers, strict=True) if answer == 1]
        return fenced, cancelled

    def release(self, lease: Lease, *, failed: bool = False) -> None:
        counted = 0 if failed else 1
        if self._run("release", *_owner(lease), counted) == -1:
            raise Fenced(lease.job_id)

    def heartbeat(self, info: WorkerInfo, ttl_s: float) -> None:
        self._run("heartbeat", info.worker_id, info.encode(), int(ttl_s * 1000))

    def retire(self, worker_id: str) -> None:
        with translated():
            pipe = self._client.pipeline(transaction=False)
            pipe.delete(self._keys.worker(worker_id))
            pipe.srem(self._keys.workers, worker_id)
            pipe.execute()

    def close(self) -> None:
        self._client.close()

    def _spared_s(self) -> float:
        """In an outage nobody could renew a lease: what it lasted does not count, until they had time to."""
        now = time.monotonic()
        if self._away_since is not None:
            return now - self._away_since
        until, spared_s = self._spare
        return spared_s if now < until else 0.0

    def _back(self) -> None:
        away_since, self._away_since = self._away_since, None
        if away_since is not None:
            now = time.monotonic()
            self._spare = now + self._settings.lease_s, now - away_since

    def _run(self, name: str, *args: str | bytes | int) -> Any:
        return self._run_each(name, [args])[0]

    def _run_each(self, name: str, calls: Sequence[Sequence[str | bytes | int]]) -> list[Any]:
        """One script for many, in one round trip. Where one of them fails, nothing is known of the others."""
        script = self._scripts[name]
        try:
            with translated():
                replies = self._replies(script.sha, calls)
                if any(isinstance(reply, NoScriptError) for reply in replies):
                    self._client.script_load(script.script)
                    replies = self._replies(script.sha, calls)
                for reply in replies:
                    if isinstance(reply, Exception):
                        raise reply
            self._back()
            return replies
        except BrokerUnavailable as error:
            self._away_since = self._away_since or time.monotonic()
            if met_a_replica(error):
                self._client.connection_pool.disconnect()
            raise

    def _replies(self, sha: str, calls: Sequence[Sequence[str | bytes | int]]) -> list[Any]:
        pipe = self._client.pipeline(transaction=False)
        for args in calls:
            pipe.evalsha(sha, 1, self._keys.jobs, *self._header, *args)
        return pipe.execute(raise_on_error=False)

    def _open(self, row: Sequence[Any], run: str) -> Claim | None:
        """Row: see claim.lua. An unreadable job ends here."""
        lease = Lease(row[0].decode(), row[2], row[3].decode(), run)
        last_seq: int = row[4]
        try:
            job = Job.decode(row[1])
            delivered = _delivered(row[8], last_seq)
        except ValueError as error:
            # Where the broker is away again, the lease runs out and the next claim says it.
            with suppress(BrokerUnavailable, Fenced):
                self.finish(lease, [_error_event(lease, last_seq + 1, error)])
            return None
        failed: int = row[5]
        last_chance = failed > 0 and failed + 1 >= self._settings.max_deliveries
        expires_at = None if row[6] == b"" else time.monotonic() + row[6] / 1000
        return Claim(job, lease, last_seq, delivered, last_chance, expires_at, row[7] / 1000)


class EventsLost(ValueError):  # noqa: N818 - a state of the job
    """Its events were trimmed: what the client was told is not known any more."""


def _delivered(entries: Sequence[Any], last_seq: int) -> tuple[int, ...]:
    """No older attempt can write any more: the claim that gave us these events fenced it."""
    events = [Event.decode(fields[1]) for _, fields in entries]
    if [event.seq for event in events] != list(range(1, last_seq + 1)):
        raise EventsLost
    return tuple(
        token for event in events if event.type == "token" for token in event.data.get("token_ids", ())
    )


def _told(lease: Lease, answer: int, have: int = 0) -> bool | Fenced | Behind:
    """Of a reply of write.lua."""
    if answer == -1:
        return Fenced(lease.job_id)
    return Behind(lease.job_id, have) if answer == -2 else answer == 1


def _or_raise(answer: bool | Fenced | Behind) -> bool:
    if isinstance(answer, bool):
        return answer
    raise answer


def _owner(lease: Lease) -> tuple[str, int, str, str]:
    return lease.job_id, lease.attempt, lease.run, lease.entry_id


def _error_event(lease: Lease, seq: int, error: ValueError) -> Event:
    lost = isinstance(error, EventsLost)
    code = "events_lost" if lost else "unreadable_job"
    text = "Its events were trimmed." if lost else f"Unreadable job: {type(error).__name__}."
    data = ErrorData(message=text, code=code).model_dump(mode="json")
    return Event(seq=seq, attempt=lease.attempt, type="error", data=data, run=lease.run)
