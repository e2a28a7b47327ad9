"""The worker's loop: claims jobs, turns the engine, writes their events.

Invariant: every claimed job leaves here in one of three ways: with its terminal event, released to another
worker, or fenced (and then nothing of it is written). Unsent events stop the engine instead of piling up.
Must not know: Redis, HTTP, the `model` package (it sees the engine through `EnginePort`).
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress

from service.broker.base import Behind, BrokerUnavailable, Claim, Fenced, WorkerBroker
from service.lease_keeper import LeaseKeeper, Pace
from service.metrics import WorkerMetrics
from service.protocol import CANCELLED, EXPIRED, DoneData, ErrorData, WorkerInfo
from service.running import DraftCounts, EnginePort, Progress, Refused, RunningJob
from service.settings import WorkerSettings
from service.throughput import Throughput
from service.tracing import NO_TRACING, JobTracing

log = logging.getLogger("twigserve.worker")

_WAIT_SLICE_S = 1.0  # how late an idle worker notices SIGTERM
_BACKOFF_FIRST_S = 0.05


class Worker:
    """`run` returns after `stop` (what runs may finish in the drain time) or raises the engine's error."""

    def __init__(
        self,
        engine: EnginePort,
        broker: WorkerBroker,
        settings: WorkerSettings,
        worker_id: str,
        metrics: WorkerMetrics,
        tracing: JobTracing = NO_TRACING,
    ) -> None:
        self._engine = engine
        self._broker = broker
        self._settings = settings
        self._id = worker_id
        self._metrics = metrics
        self._tracing = tracing
        self._card = engine.card
        self._waiting: list[Claim] = []  # claimed, not yet with the engine
        self._jobs: dict[str, RunningJob] = {}  # by engine id
        self._started_at = time.time()
        self._drain_until: float | None = None
        self._backoff_s = _BACKOFF_FIRST_S
        self._throughput = Throughput()
        self._stopping = False  # no Event: its lock may be held by what the signal interrupts
        pace = Pace(settings.redis.lease_s / 4, settings.heartbeat_s, settings.stall_s)
        self._keeper = LeaseKeeper(broker, self._beat, pace)

    def stop(self) -> None:
        """Safe in a signal handler. Called again, it stops waiting for what runs."""
        if self._stopping:
            self._drain_until = 0.0
        self._stopping = True

    def run(self) -> None:
        log.info("worker ready", extra={"worker_id": self._id, "vlm": self._card.model_id})
        self._keeper.start()
        try:
            while not self._finished():
                self._turn()
        except Exception:
            # The engine's state is unknown: give everything back, counted as a failed delivery each.
            log.exception("engine failed", extra={"worker_id": self._id, "jobs": len(self._jobs)})
            with suppress(BrokerUnavailable):
                self._release_all(failed=True)
            raise
        finally:
            self._leave()

    def _finished(self) -> bool:
        if not self._stopping:
            return False
        if self._drain_until is None:
            log.info("draining", extra={"worker_id": self._id, "jobs": len(self._jobs)})
            self._drain_until = time.monotonic() + self._settings.drain_s
            with suppress(BrokerUnavailable):
                self._release_waiting()
        return not self._jobs or time.monotonic() >= self._drain_until

    def _leave(self) -> None:
        self._keeper.stop()
        try:
            self._release_all(failed=False)
            self._broker.retire(self._id)
        except BrokerUnavailable as error:  # asked once, not for each job: the leases lapse by themselves
            log.warning("left without giving back", extra={"worker_id": self._id, "error": str(error)})
        log.info("worker left", extra={"worker_id": self._id})

    def _turn(self) -> None:
        self._keeper.turn()
        self._metrics.last_round.set_to_current_time()
        try:
            self._flush()
            self._drop_lost()
            found = 0 if self._stopping else self._claim()
            self._begin_waiting()
        except BrokerUnavailable as error:
            log.warning("broker away", extra={"error": str(error), "retry_s": self._backoff_s})
            self._pause()
            return
        self._backoff_s = _BACKOFF_FIRST_S
        if self._engine.has_work():
            self._step()
        elif not found and not self._jobs and not self._waiting:
            self._wait()

    def _pause(self) -> None:
        time.sleep(self._backoff_s)
        self._backoff_s = min(2 * self._backoff_s, self._settings.redis.backoff_max_s)

    def _wait(self) -> None:
        until = time.monotonic() + self._settings.poll_s
        with suppress(BrokerUnavailable):  # the next claim says so, and paces the retries
            while not self._stopping and (left := until - time.monotonic()) > 0:
                if self._broker.wait_for_work(min(left, _WAIT_SLICE_S)):
                    return

    # --- in ---

    def _claim(self) -> int:
        free = self._settings.max_batch - len(self._jobs) - len(self._waiting)
        # What the engine has no memory for yet waits in the queue instead, where any worker can take it.
        if free <= 0 or self._engine.load().waiting or self._runs_one_alone():
            return 0
        batch = self._broker.claim(free)
        self._metrics.claimed(batch)
        for claim in sorted(batch.claims, key=lambda claim: claim.last_chance):
            self._keeper.hold(claim.lease)
            self._waiting.append(claim)
        return len(batch.claims) + batch.cancelled + batch.expired + batch.poisoned

    def _runs_one_alone(self) -> bool:
        return any(claim.last_chance for claim in (*self._waiting, *(j.claim for j in self._jobs.values())))

    def _begin_waiting(self) -> None:
        """Where the broker is away, they stay in line."""
        due = self._due()
        # The queue must hear that we have them before the engine does: only then is it counted if we fail.
        fenced, _ = self._broker.renew([claim.lease for claim in due])
        for claim in due:
            if claim.lease in fenced:
                self._keeper.drop(claim.lease)
                self._metrics.dropped("fenced")
            else:
                self._begin(claim)
            self._waiting.remove(claim)

    def _due(self) -> list[Claim]:
        """Who may begin now, in their order; one that has its last chance, by itself."""
        due: list[Claim] = []
        for claim in self._waiting:
            if claim.last_chance:
                return due or ([] if self._jobs else [claim])
            due.append(claim)
        return due

    def _begin(self, claim: Claim) -> None:
        images = self._broker.blobs([image.sha256 for image in claim.job.images])
        for older in [other for other in self._jobs.values() if other.lease.job_id == claim.job.id]:
            self._forget(older, "fenced")
        job = RunningJob(claim, self._id)
        self._jobs[job.engine_id] = job
        log.info("job begun", extra=job.log_fields)  # of a job that ends its worker, all there will be
        try:
            self._engine.begin(job, images)
        except Refused as refusal:
            log.info("job refused", extra=job.log_fields | {"error": refusal.data.message})
            job.failed(refusal.data)

    # --- the engine's round ---

    def _step(self) -> None:
        began = time.monotonic()
        progress = self._engine.advance()
        now = time.monotonic()
        worked_off = 0
        for part in progress:
            job = self._jobs.get(part.engine_id)
            if job is not None and not job.ended:
                worked_off += job.work_off(len(part.token_ids), ended=part.end is not None)
                self._take(job, part, now)
        self._throughput.add(worked_off, now - began)
        self._metrics.see_round(self._engine.load())

    def _take(self, job: RunningJob, part: Progress, now: float) -> None:
        if part.text or part.token_ids:
            job.tokens(part.text, part.token_ids, part.drafted, part.pieces)
        if part.token_ids:
            gap_s = None if job.last_tokens_at is None else now - job.last_tokens_at
            job.last_tokens_at = now
            self._metrics.generated(len(part.token_ids), gap_s)
        if isinstance(part.end, ErrorData):
            log.error("engine gave a job up", extra=job.log_fields)
            job.failed(part.end)
        elif part.end is not None:
            self._done(job, part.end, part.drafts)

    def _done(self, job: RunningJob, data: DoneData, drafts: DraftCounts) -> None:
        queue_s, resumed = job.queue_s + data.queue_s, len(job.resumed)
        data = data.model_copy(update={"worker_id": self._id, "queue_s": queue_s, "resumed_tokens": resumed})
        job.done(data)
        self._metrics.finished(data, drafts)
        log.info("job done", extra=job.log_fields | {"tokens": len(data.token_ids)})

    # --- out ---

    def _flush(self) -> None:
        """Sends what is unsent; after BrokerUnavailable the same again, as writes are idempotent."""
        jobs = [job for job in self._jobs.values() if job.outbox]
        answers = self._broker.write([(job.lease, job.outbox) for job in jobs]) if jobs else []
        for job, answer in zip(jobs, answers, strict=True):
            if isinstance(answer, Fenced):
                self._forget(job, "fenced")
            elif isinstance(answer, Behind):
                log.warning("events sent again", extra=job.log_fields | {"behind": answer.have})
                job.rewind(answer.have)
            elif job.ended:
                self._tracing.finished(job)
                self._forget(job, None)
            else:
                job.outbox.clear()
                if answer:
                    self._cancel(job)

    def _drop_lost(self) -> None:
        fenced, cancelled = self._keeper.take_news()
        self._waiting = [claim for claim in self._waiting if claim.lease not in fenced]
        now = time.monotonic()
        for job in list(self._jobs.values()):
            if job.lease in fenced:
                self._forget(job, "fenced")
            elif job.lease in cancelled:
                self._cancel(job)
            elif job.expired(now) and not job.ended:
                data = ErrorData(type="timeout_error", message="The deadline passed.", code=EXPIRED)
                self._end_early(job, data, "expired")

    def _cancel(self, job: RunningJob) -> None:
        if not job.ended:
            data = ErrorData(type="cancelled_error", message="The request was cancelled.", code=CANCELLED)
            self._end_early(job, data, "cancelled")

    def _end_early(self, job: RunningJob, data: ErrorData, counted_as: str) -> None:
        """The event goes out with the next flush; what the engine still says of the job is ignored."""
        job.failed(data)
        self._engine.abort(job.engine_id)
        self._metrics.dropped(counted_as)

    def _forget(self, job: RunningJob, counted_as: str | None) -> None:
        del self._jobs[job.engine_id]
        self._keeper.drop(job.lease)
        if not job.ended:
            self._engine.abort(job.engine_id)
        if counted_as is not None:
            log.warning("job dropped", extra=job.log_fields | {"reason": counted_as})
            self._metrics.dropped(counted_as)

    def _release_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for claim in waiting:
            self._keeper.drop(claim.lease)
        for claim in waiting:
            with suppress(Fenced):
                self._broker.release(claim.lease)

    def _release_all(self, *, failed: bool) -> None:
        jobs, self._jobs = list(self._jobs.values()), {}
        self._release_waiting()
        for job in jobs:
            with suppress(Fenced, Behind):
                if job.ended:
                    self._broker.finish(job.lease, job.outbox)
                else:
                    self._broker.release(job.lease, failed=failed)

    def _beat(self) -> None:
        info = WorkerInfo(
            worker_id=self._id,
            started_at=self._started_at,
            card=self._card,
            max_slots=self._settings.max_batch,
            free_slots=max(0, self._settings.max_batch - len(self._jobs)),
            draining=self._stopping,
            tokens_per_s=self._throughput.per_s(),
        )
        self._broker.heartbeat(info, self._settings.heartbeat_ttl_s)
