"""The broker as its two users see it: `GatewayBroker` (asyncio) and `WorkerBroker` (threads).

Promises (the contract suite proves each): a submitted job ends in exactly one terminal event; only the
owner of the newest attempt can write; its events are numbered without gap or repetition across attempts.
The worker side is synchronous because the engine's loop is, and its lease thread must not wait for it.
Every method may raise `BrokerUnavailable`: the caller decides whether to wait or to refuse.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from service.protocol import Event, Job, JobStatus, QueueStats, WorkerInfo


class BrokerError(Exception):
    """
    BrokerError
    ├── BrokerUnavailable   connection lost, refused, read-only, loading: try again later
    ├── JobNotFound         never submitted, or expired since its end
    ├── Unreadable          written by a newer version of the service
    ├── Diverged            events were lost or written again otherwise: what follows would not fit
    ├── Fenced              the lease passed to someone else, or the job has ended: write nothing more
    └── Behind              the server lost the newest events: send them again
    """


class BrokerUnavailable(BrokerError):  # noqa: N818 - a state, named as the log reads it
    pass


class JobNotFound(BrokerError):  # noqa: N818 - a state, named as the log reads it
    pass


class Fenced(BrokerError):  # noqa: N818 - a state, named as the log reads it
    pass


class Unreadable(BrokerError):  # noqa: N818 - a state, named as the log reads it
    pass


class Diverged(BrokerError):  # noqa: N818 - a state, named as the log reads it
    pass


class Behind(BrokerError):  # noqa: N818 - a state, named as the log reads it
    """have: seq of the newest event that the server has."""

    def __init__(self, job_id: str, have: int) -> None:
        super().__init__(f"{job_id} has no event after {have}")
        self.have = have


EndedWaiting = Literal["cancelled", "expired"]


@dataclass(frozen=True)
class Idempotency:
    """key: a digest of the client's key and its scope. fingerprint: a digest of what was asked."""

    key: str
    fingerprint: str


@dataclass(frozen=True)
class KeyedJob:
    job_id: str
    fingerprint: str


@dataclass(frozen=True)
class Reservation:
    """Room for a job's predicted tokens. limit: in all; owner_limit: of this owner's, None for no limit."""

    job_id: str
    owner: str
    tokens: int
    limit: int
    owner_limit: int | None = None


@dataclass(frozen=True)
class Full:
    """Which limit stands in a reservation's way, and how many tokens are reserved under it."""

    which: Literal["queue", "owner"]
    reserved_tokens: int


@dataclass(frozen=True)
class Rate:
    """One owner's requests a minute. reset_s: until all of them may be made again."""

    allowed: bool
    remaining: int
    reset_s: float
    retry_after_s: float


class GatewayBroker(Protocol):
    async def start(self) -> None:
        """Starts the event reader; does not need the server to be up."""

    async def close(self) -> None:
        """Ends every open `events` iterator with BrokerUnavailable."""

    def release(self) -> None:
        """Ends every open `events` iterator as `close` does; the rest works on."""

    async def ping(self) -> None:
        """Raises BrokerUnavailable within the connect timeout."""

    async def spend_request(self, owner: str, per_minute: int) -> Rate:
        """Takes one from the owner's bucket, which all gateways share."""

    async def admit(self, asked: Reservation) -> Full | None:
        """Reserves, at once, or says why not. The job must be submitted or given back within a minute.

        A submitted job keeps its reservation until its terminal event.
        """

    async def give_back(self, job_id: str) -> None:
        """Of an admitted job that will not be submitted; of a submitted one nothing changes."""

    async def submit(
        self, job: Job, blobs: Mapping[str, bytes], idempotency: Idempotency | None = None
    ) -> bool:
        """Queues the job with its images (name -> bytes) and takes the idempotency key, in one write.

        Images under the job's name (`picture_name`) go when it ends. False: this id is known, or another job
        has the key; nothing changed. Until the job has ended, this side puts it back, as far as it had come,
        into a server that lost it.
        """

    async def keyed_job(self, key: str) -> KeyedJob | None:
        """Who has this idempotency key; it is free again when the job's result expires."""

    def events(
        self, job_id: str, after: str | None = None, patience_s: float | None = None
    ) -> AsyncGenerator[Event, None]:
        """The job's events behind `after` (an event id; None: from the first), up to the terminal one.

        TimeoutError where that has not come within `patience_s` of the first call.
        A lost connection is a pause, not an error. Raises JobNotFound, also when the server lost a job that
        no gateway puts back; Diverged rather than a repeated or a missing event.
        Close it (`aclose`, `contextlib.aclosing`) when leaving early.
        """

    async def cancel(self, job_id: str) -> bool:
        """Ends the job: at once if it waits, at the next round if it runs. False: unknown or ended."""

    async def abandon(self, job_id: str) -> None:
        """Nobody waits for the job: cancels it, and where the queue is away as soon as it is back."""

    async def expire(self, job_id: str) -> float:
        """Ends the job now if it waits and its deadline has passed.

        Returns the seconds, by the queue's clock, until there may be something to end; 0: there is not.
        """

    def take_ended_waiting(self) -> Mapping[EndedWaiting, int]:
        """How many jobs this side ended while they waited, since the last call; workers count the others."""

    async def status(self, job_id: str) -> JobStatus | None:
        """None: never submitted, or expired since its end."""

    async def workers(self) -> list[WorkerInfo]:
        """Live heartbeats."""

    async def queue_stats(self) -> QueueStats: ...


@dataclass(frozen=True)
class Lease:
    """The right to write a job's events. `attempt` grows with every claim; with `run`, the claim's random
    name, it is the fencing token: a server that lost a claim would give the number alone a second time.
    """

    job_id: str
    attempt: int
    entry_id: str
    run: str


Parcel = tuple[Lease, Sequence[Event]]


@dataclass(frozen=True)
class Claim:
    """A job to run. Events continue at last_seq + 1; the tokens in resume_token_ids are delivered already.

    last_chance: every delivery but this one has failed; run it alone, so that if it is what kills its
    workers, it takes no innocent job with it. expires_at: the deadline on this worker's monotonic clock.
    waited_s: in the queue, by the server's clock.
    """

    job: Job
    lease: Lease
    last_seq: int
    resume_token_ids: tuple[int, ...]
    last_chance: bool = False
    expires_at: float | None = None
    waited_s: float = 0.0


@dataclass(frozen=True)
class ClaimBatch:
    """What one claim gave, and how many jobs it dropped on the way (each with its terminal event)."""

    claims: Sequence[Claim] = ()
    redelivered: int = 0
    cancelled: int = 0
    expired: int = 0
    poisoned: int = 0


class WorkerBroker(Protocol):
    """Thread-safe. Writes are idempotent by `seq`: after BrokerUnavailable repeat the same call, after Behind
    send the events behind `have` again.
    """

    def claim(self, limit: int) -> ClaimBatch:
        """At most `limit` jobs: first those whose lease ran out, then new ones, fairly. Does not block.

        Only jobs of the model this broker was made for, and those that name none. Renew a lease before its
        job is begun: a claim that was neither renewed nor written to may never have arrived, and counts as
        no failed delivery.
        """

    def wait_for_work(self, timeout_s: float) -> bool:
        """Blocks until a job may be there (True) or the time is over; a spurious True is allowed."""

    def blobs(self, sha256s: Sequence[str]) -> list[bytes | None]:
        """The images, None where one is gone: expired, or its job has ended."""

    def publish(self, lease: Lease, events: Sequence[Event]) -> bool:
        """Appends events. True: the gateway asked for the job's end. Raises Fenced, Behind."""

    def finish(self, lease: Lease, events: Sequence[Event]) -> None:
        """Appends events, the last one terminal, and ends the job, in one write. Raises Fenced, Behind."""

    def write(self, parcels: Sequence[Parcel]) -> list[bool | Fenced | Behind]:
        """The events of many jobs in one round trip: each as by `finish` where its last event is terminal,
        else as by `publish`. For each what that would have returned or raised; a finish returns False.
        """

    def renew(self, leases: Sequence[Lease]) -> tuple[list[Lease], list[Lease]]:
        """Prolongs the leases we still own; returns (fenced, cancel requested)."""

    def release(self, lease: Lease, *, failed: bool = False) -> None:
        """Gives an unfinished job back, to be claimed at once; `failed` counts towards the delivery limit."""

    def heartbeat(self, info: WorkerInfo, ttl_s: float) -> None: ...

    def retire(self, worker_id: str) -> None:
        """Deletes the heartbeat."""

    def close(self) -> None: ...
