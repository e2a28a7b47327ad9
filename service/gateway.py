"""What the routes work with: the broker, the picture preparation, admission and metrics of one gateway.

Invariant: what the broker raises leaves here as an ApiError; no wait for a job outlasts its deadline.
Must not know: HTTP requests and responses, Redis.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass

from service.admission import Admission, check_possible, refusal
from service.alarm import Alarm
from service.answers import Answer, job_error
from service.background import Background
from service.broker.base import (
    BrokerError,
    GatewayBroker,
    Idempotency,
    Reservation,
)
from service.callers import ANONYMOUS, Caller, priority_of
from service.errors import (
    DeadlineExceeded,
    IdempotencyConflict,
    NotFound,
    QueueDown,
    Stopping,
    Unavailable,
)
from service.fleet import Fleet, Look, open_card
from service.image_pool import ImagePool
from service.image_url import FetchLimits, ImageFetcher, ImageUrl
from service.images import ImageLimits, PreparedImage
from service.intake import Picture, Submission
from service.metrics import GatewayMetrics
from service.params import TextLimits, job_params
from service.prediction import predicted_tokens
from service.protocol import Event, ImageRef, Job, JobStatus, ModelCard, WorkerInfo, picture_name
from service.queue_errors import RETRY_AFTER_S, queue_errors
from service.request_tracing import request_tracing
from service.settings import GatewaySettings

JOB_ID = re.compile(r"[a-z]{1,16}-[0-9a-f]{32}")
# The worker ends a job at its deadline; the gateway steps in only where no worker did.
DEADLINE_GRACE_S = 2.0


@dataclass(frozen=True)
class Accepted:
    """replayed: an earlier request with the same idempotency key made the job. left_s: as in `follow`."""

    job: Job
    replayed: bool = False
    left_s: float | None = None


class Gateway:
    def __init__(self, settings: GatewaySettings, broker: GatewayBroker, metrics: GatewayMetrics) -> None:
        self.settings = settings
        self.broker = broker
        self.metrics = metrics
        self.background = Background(broker, metrics)
        self.tracing = request_tracing(settings.tracing)
        self.admission = Admission(settings.max_open_requests)
        limits = ImageLimits(settings.max_image_bytes, settings.max_pixels)
        self._draining = self._released = False
        self.fleet = Fleet(broker)
        self.images = ImagePool(limits, settings.decode_processes)
        self.fetcher = ImageFetcher(
            FetchLimits(settings.image_url_hosts, settings.max_image_bytes, settings.image_url_timeout_s)
        )
        self._text_limits = TextLimits(
            settings.max_prompt_chars, settings.max_tokens_default, settings.max_tokens_limit
        )

    def drain(self) -> None:
        """From now on not ready; what runs may end."""
        self._draining = True

    def release(self) -> None:
        """What still waits here gets `Stopping`; its jobs go on and can be read from another gateway."""
        self._released = True
        self.broker.release()

    async def look(self, max_age_s: float = 0.0) -> Look:
        """The queue, and the workers that take new jobs; or what was seen so long ago at most."""
        return await self.fleet.look(max_age_s)

    async def ready(self, max_age_s: float = 0.0, *, without_workers: bool = False) -> Look:
        """As `look`, with at least one worker unless it goes without, else 503."""
        if self._draining:
            raise Stopping("This gateway is stopping.", retry_after_s=RETRY_AFTER_S)
        return await self.fleet.ready(max_age_s, without_workers=without_workers)

    async def submit(
        self,
        submission: Submission,
        request_id: str,
        idempotency: Idempotency | None = None,
        *,
        caller: Caller = ANONYMOUS,
        deadline_at: float | None = None,
        traceparent: str = "",
    ) -> Accepted:
        """deadline_at: unix seconds; None for the longest that an answer is waited for."""
        for image in submission.images:
            if isinstance(image, ImageUrl):
                self.fetcher.check(image)
        earlier = await self._earlier(idempotency)
        if earlier is not None:
            return Accepted(earlier.job, replayed=True, left_s=earlier.left_s)
        _, workers = await self.ready(self.settings.look_age_s)
        card = open_card(workers, submission.model)
        job = self._draft(submission, card, request_id, caller, deadline_at)
        await self._admit(job, caller, workers)
        try:
            pictures = await self._prepare(submission.images, card)
            named = [(picture_name(job.id, p.sha256), p) for p in pictures]
            refs = tuple(ImageRef(sha256=name, height=p.height, width=p.width) for name, p in named)
            # From here on the queue's clock counts what is left to the deadline.
            update = {"images": refs, "created_at": time.time(), "traceparent": traceparent}
            job = job.model_copy(update=update)
            if job.deadline_at is not None and job.deadline_at <= job.created_at:
                raise DeadlineExceeded("The deadline passed before the request was queued.")
            with queue_errors():
                added = await self.broker.submit(job, {name: p.rgb for name, p in named}, idempotency)
        except BaseException:
            with contextlib.suppress(BrokerError):  # then it falls due by itself
                await self.broker.give_back(job.id)
            raise
        if added or idempotency is None:
            return Accepted(job)
        earlier = await self._earlier(idempotency)
        if earlier is None:
            raise Unavailable("The queue lost this job.", code="job_lost", retry_after_s=RETRY_AFTER_S)
        return Accepted(earlier.job, replayed=earlier.job.id != job.id, left_s=earlier.left_s)

    async def _earlier(self, idempotency: Idempotency | None) -> JobStatus | None:
        """The job that has the key, where it was asked for the same thing."""
        if idempotency is None:
            return None
        with queue_errors():
            holder = await self.broker.keyed_job(idempotency.key)
            status = None if holder is None else await self.broker.status(holder.job_id)
        if holder is None or status is None:
            return None
        if holder.fingerprint != idempotency.fingerprint:
            raise IdempotencyConflict("This Idempotency-Key was used for a different request.")
        return status

    def _draft(
        self,
        submission: Submission,
        card: ModelCard,
        request_id: str,
        caller: Caller,
        deadline_at: float | None,
    ) -> Job:
        """The job without its pictures, which are not decoded yet."""
        fields, images, now = submission.fields, len(submission.images), time.time()
        params = job_params(submission, card, self._text_limits)
        return Job(
            id=f"{submission.kind}-{uuid.uuid4().hex}",
            created_at=now,
            prompt=fields.prompt,
            params=params,
            deadline_at=deadline_at or now + self.settings.request_timeout_s,
            request_id=request_id,
            model=card.model_id,
            owner=caller.name,
            priority=priority_of(fields.service_tier, caller),
            predicted_tokens=predicted_tokens(submission.texts, images, params, card),
            history=submission.history,
        )

    async def _admit(self, job: Job, caller: Caller, workers: Sequence[WorkerInfo]) -> None:
        limits = (self.settings.max_reserved_tokens, caller.tokens_in_flight)
        asked = Reservation(job.id, job.owner, job.predicted_tokens, *limits)
        check_possible(asked)
        with queue_errors():
            full = await self.broker.admit(asked)
        if full is not None:
            raise refusal(asked, full, workers)

    async def job(self, job_id: str, caller: Caller = ANONYMOUS) -> JobStatus:
        """404 where it is unknown, has expired, or is another key's."""
        with queue_errors():
            status = await self.broker.status(job_id) if JOB_ID.fullmatch(job_id) else None
        if status is None or status.job.owner != caller.name:
            raise NotFound("No such job, or its result has expired.", param="job_id", code="job_not_found")
        return status

    async def cancel(self, job_id: str, caller: Caller = ANONYMOUS) -> JobStatus:
        """Ends the job if it has not ended; what it is then."""
        await self.job(job_id, caller)
        with queue_errors():
            await self.broker.cancel(job_id)
        return await self.job(job_id, caller)

    async def _prepare(self, images: Sequence[Picture], card: ModelCard) -> list[PreparedImage]:
        files = [
            await self.fetcher.fetch(image) if isinstance(image, ImageUrl) else image for image in images
        ]
        began = time.monotonic()
        pictures = [await self.images.prepare(data, card.image) for data in files]
        self.metrics.preprocessed(time.monotonic() - began)
        return pictures

    async def follow(
        self,
        job: Job,
        answer: Answer,
        after: str | None = None,
        left_s: float | None = None,
        *,
        leaves_early: bool = False,
    ) -> AsyncGenerator[Event, None]:
        """The job's events (behind the one named) up to `done`; an ApiError where it ends otherwise.

        left_s: to its deadline, by the queue's clock; None where the job is this gateway's own, of now.
        leaves_early: left_s is the caller's own patience instead, which ends before the job's deadline.
        """
        if self._released:
            raise _stopping(job)
        if left_s is None and job.deadline_at is not None:
            left_s = job.deadline_at - time.time()
        left_s = max(self.settings.request_timeout_s if left_s is None else left_s, 0)
        # What a job said before its deadline can be read after it.
        patience_s = left_s if leaves_early else left_s + DEADLINE_GRACE_S
        expiring = Alarm(left_s, lambda: self._expire(job))
        try:
            async with contextlib.aclosing(self.broker.events(job.id, after, patience_s)) as events:
                while not answer.ended:
                    event = await self._next(events, job, leaves_early)
                    answer.see(event)
                    if event.type == "error":
                        raise job_error(event)
                    yield event
        finally:
            expiring.cancel()

    async def _expire(self, job: Job) -> None:
        """A job that still waits for a worker ends on time; one that runs is its worker's to end."""
        with contextlib.suppress(BrokerError):
            left_s = await self.broker.expire(job.id)
            while left_s > 0:
                await asyncio.sleep(left_s)
                left_s = await self.broker.expire(job.id)

    async def leave(self, job: Job, answer: Answer) -> None:
        """Nobody waits for the answer any more: a job that has not ended is cancelled."""
        if answer.ended or self._released:
            return
        await self.broker.abandon(job.id)

    async def _next(self, events: AsyncIterator[Event], job: Job, leaves_early: bool) -> Event:
        try:
            with queue_errors():
                return await anext(events)
        except TimeoutError as late:
            what = f"goes on at /v1/jobs/{job.id}" if leaves_early else "was cancelled"
            raise DeadlineExceeded(f"No answer before the deadline; the request {what}.") from late
        except QueueDown as down:
            raise _stopping(job) if self._released else down from down


def _stopping(job: Job) -> Stopping:
    return Stopping(
        f"This gateway is stopping; the answer goes on at /v1/jobs/{job.id}.", retry_after_s=RETRY_AFTER_S
    )
