"""What the routes work with: the broker, the picture preparation, admission and metrics of one gateway.

Invariant: what the broker raises leaves here as an ApiError; no wait for a job outlasts its deadline.
Must not know: HTTP requests and responses, Redis.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence

from service.admission import Admission
from service.answers import Answer, job_error
from service.broker.base import BrokerError, GatewayBroker, JobNotFound
from service.errors import DeadlineExceeded, NoWorker, QueueDown, Unavailable
from service.images import ImageLimits, ImagePreparer, PreparedImage
from service.intake import Submission
from service.metrics import GatewayMetrics
from service.params import TextLimits, job_params
from service.protocol import Event, ImageRef, Job, ModelCard, QueueStats, WorkerInfo
from service.settings import GatewaySettings

RETRY_AFTER_S = 5
# The worker ends a job at its deadline; the gateway steps in only where no worker did.
DEADLINE_GRACE_S = 2.0


class Gateway:
    def __init__(self, settings: GatewaySettings, broker: GatewayBroker, metrics: GatewayMetrics) -> None:
        self.settings = settings
        self.broker = broker
        self.metrics = metrics
        self.admission = Admission(settings.max_queued_jobs, settings.max_tokens_default)
        limits = ImageLimits(settings.max_image_bytes, settings.max_pixels)
        self._images = ImagePreparer(limits, settings.decode_threads)
        self._text_limits = TextLimits(
            settings.max_prompt_chars, settings.max_tokens_default, settings.max_tokens_limit
        )

    async def look(self) -> tuple[QueueStats, list[WorkerInfo]]:
        """The queue, and the workers that take new jobs."""
        with queue_errors():
            queue = await self.broker.queue_stats()
            return queue, [worker for worker in await self.broker.workers() if not worker.draining]

    async def ready(self) -> tuple[QueueStats, list[WorkerInfo]]:
        """As `look`, with at least one worker, else 503."""
        queue, workers = await self.look()
        if not workers:
            raise NoWorker("No worker is ready.", retry_after_s=RETRY_AFTER_S)
        return queue, workers

    async def open_card(self) -> ModelCard:
        """The card of the model that would run a job now; refuses where none would, or too many wait."""
        queue, workers = await self.ready()
        self.admission.check_queue(queue, workers)
        return min(workers, key=lambda worker: worker.worker_id).card

    async def submit(self, submission: Submission, request_id: str) -> Job:
        card = await self.open_card()
        params = job_params(submission.fields, card, len(submission.images), self._text_limits)
        pictures = await self._prepare(submission.images, card)
        now = time.time()
        job = Job(
            id=f"desc-{uuid.uuid4().hex}",
            created_at=now,
            prompt=submission.fields.prompt,
            images=tuple(ImageRef(sha256=p.sha256, height=p.height, width=p.width) for p in pictures),
            params=params,
            deadline_at=now + self.settings.request_timeout_s,
            request_id=request_id,
        )
        with queue_errors():
            await self.broker.submit(job, {picture.sha256: picture.rgb for picture in pictures})
        return job

    async def _prepare(self, images: Sequence[bytes], card: ModelCard) -> list[PreparedImage]:
        began = time.monotonic()
        pictures = [await self._images.prepare(data, card.image) for data in images]
        self.metrics.preprocessed(time.monotonic() - began)
        return pictures

    async def follow(self, job: Job, answer: Answer) -> AsyncGenerator[Event, None]:
        """The job's events up to `done`; an ApiError where it ends otherwise."""
        async with contextlib.aclosing(self.broker.events(job.id)) as events:
            while not answer.ended:
                event = await self._next(events, job)
                answer.see(event)
                if event.type == "error":
                    raise job_error(event)
                yield event

    async def leave(self, job: Job, answer: Answer) -> None:
        """Nobody waits for the answer any more: a job that has not ended is cancelled."""
        if answer.ended:
            return
        with contextlib.suppress(BrokerError):
            await self.broker.cancel(job.id)

    async def _next(self, events: AsyncIterator[Event], job: Job) -> Event:
        patience_s = job.created_at + self.settings.request_timeout_s + DEADLINE_GRACE_S - time.time()
        try:
            # Not wait_for: before Python 3.12 it loses a cancellation that meets an event.
            with queue_errors():
                async with asyncio.timeout(patience_s):
                    return await anext(events)
        except TimeoutError as late:
            raise DeadlineExceeded(
                f"No answer within {self.settings.request_timeout_s:g} s; the request was cancelled."
            ) from late


@contextlib.contextmanager
def queue_errors() -> Iterator[None]:
    """The broker's errors as the client is told of them."""
    try:
        yield
    except (JobNotFound, StopAsyncIteration) as lost:
        raise Unavailable("The queue lost this job.", code="job_lost", retry_after_s=RETRY_AFTER_S) from lost
    except BrokerError as down:
        raise QueueDown("The queue is not reachable.", retry_after_s=RETRY_AFTER_S) from down
