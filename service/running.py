"""One claimed job on its way through the engine, and what the engine says of it.

Invariant: events are numbered from the claim's `last_seq` on; an event leaves `outbox` only once the
broker has it; after a terminal event nothing is added. Pure: no Redis, no engine, no `model` package.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from service.broker.base import Claim, Lease
from service.protocol import (
    DoneData,
    ErrorData,
    Event,
    EventType,
    Message,
    ModelCard,
    StartedData,
    TokenData,
)


class Refused(Exception):  # noqa: N818 - what the engine did, not a fault
    """The engine will not have this job; `data` is what its client is told."""

    def __init__(self, data: ErrorData) -> None:
        super().__init__(data.message)
        self.data = data


@dataclass(frozen=True)
class DraftCounts:
    """Over a job's rounds: drafts accepted by their place in the draft, rounds by what ended their draft."""

    accepted_per_position: Sequence[int] = ()
    stops: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """What one round gave one job: the new tokens, and its end where this was the last."""

    engine_id: str
    text: str = ""
    token_ids: Sequence[int] = ()
    drafted: Sequence[bool] = ()
    end: DoneData | ErrorData | None = None
    drafts: DraftCounts = DraftCounts()
    pieces: Sequence[str] = ()


@dataclass(frozen=True)
class EngineLoad:
    """running, waiting: sequences; batch_size: rows of the last round; kv_usage: used share, 0..1."""

    running: int
    waiting: int
    batch_size: int
    kv_usage: float


class EnginePort(Protocol):
    """The engine in the service's own words, see `service.worker.Engine`."""

    @property
    def card(self) -> ModelCard: ...
    def begin(self, job: RunningJob, images: Sequence[bytes | None]) -> None:
        """Raises Refused where the engine will not have it."""

    def advance(self) -> list[Progress]: ...
    def abort(self, engine_id: str) -> None: ...
    def has_work(self) -> bool: ...
    def load(self) -> EngineLoad: ...


@dataclass
class RunningJob:
    """last_tokens_at: on the worker's monotonic clock, None before the first.

    began_at: unix seconds, for traces alone.

    history: every event of this attempt, should the server lose some.
    """

    claim: Claim
    worker_id: str
    outbox: list[Event] = field(default_factory=list)
    history: list[Event] = field(default_factory=list)
    last_tokens_at: float | None = None
    began_at: float = field(default_factory=time.time)
    ended: bool = False

    def __post_init__(self) -> None:
        self._seq = self.claim.last_seq
        self._generated = self._worked_off = len(self.resumed)
        self._add("started", StartedData(worker_id=self.worker_id, resumed_tokens=len(self.resumed)))

    @property
    def lease(self) -> Lease:
        return self.claim.lease

    @property
    def engine_id(self) -> str:
        """Unique to the claim: a worker may meet its own lapsed job again, and an attempt's number may come
        again where the broker has lost the claim alone.
        """
        return f"{self.lease.job_id}#{self.lease.attempt}#{self.lease.run}"

    @property
    def resumed(self) -> tuple[int, ...]:
        return self.claim.resume_token_ids

    @property
    def queue_s(self) -> float:
        return self.claim.waited_s

    @property
    def log_fields(self) -> dict[str, Any]:
        job = self.claim.job
        return {"job_id": job.id, "request_id": job.request_id, "attempt": self.lease.attempt}

    def work_off(self, new_tokens: int, *, ended: bool) -> int:
        """How many of the job's predicted tokens are done with, since the last call."""
        job = self.claim.job
        self._generated += new_tokens
        prompt = max(0, job.predicted_tokens - job.params.max_tokens)
        done = job.predicted_tokens if ended else min(prompt + self._generated, job.predicted_tokens)
        newly, self._worked_off = done - self._worked_off, done
        return newly

    def expired(self, now: float) -> bool:
        """now: on the worker's monotonic clock."""
        return self.claim.expires_at is not None and now >= self.claim.expires_at

    def rewind(self, have: int) -> None:
        """The broker has lost this attempt's events behind `have`: they are unsent again."""
        self.outbox = [event for event in self.history if event.seq > have]

    def tokens(
        self, text: str, token_ids: Sequence[int], drafted: Sequence[bool], pieces: Sequence[str] = ()
    ) -> None:
        ids, whose, parts = tuple(token_ids), tuple(drafted), tuple(pieces)
        self._add("token", TokenData(text=text, token_ids=ids, drafted=whose, pieces=parts))

    def done(self, data: DoneData) -> None:
        self._add("done", data)

    def failed(self, data: ErrorData) -> None:
        self._add("error", data)

    def _add(self, kind: EventType, data: Message) -> None:
        if self.ended:
            raise ValueError(f"job {self.lease.job_id} has ended already")
        self._seq += 1
        self.ended = kind in ("done", "error")
        body = data.model_dump(mode="json")
        lease = self.lease
        event = Event(seq=self._seq, attempt=lease.attempt, type=kind, data=body, run=lease.run)
        self.outbox.append(event)
        self.history.append(event)
