"""Runs the lines of batches: a few at a time, behind everything else, wherever a gateway is alive.

Invariant: each line ends in exactly one result, whatever dies: its job has an idempotency key made of batch
and line, so a gateway that takes over finds the job (and its answer) instead of asking twice. A busy or
absent fleet delays lines and fails none, for as long as the batch is kept; so does a fleet of other models,
for a while: a model that nobody serves may also be one that the line got wrong.
Must not know: HTTP, how batches are shown, Redis.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
import logging
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from service.answers import Answer, description_json
from service.batches import PRIORITY, RUNNING, AboutBatch, content_lines
from service.broker.base import BrokerError, Idempotency
from service.broker.batches import BatchStore, owner_of, stored_name
from service.broker.tasks import end
from service.callers import Caller
from service.chat_intake import chat_of_json
from service.chat_words import ChatWords
from service.errors import (
    BadField,
    DeadlineExceeded,
    NotFound,
    TooBusy,
    Unavailable,
    as_api_error,
    renaming,
)
from service.gateway import Accepted, Gateway
from service.intake import Submission, submission_of_json
from service.protocol import Job
from service.schemas import Description
from service.schemas_batch import BatchLine

log = logging.getLogger(__name__)

IN_FLIGHT = 4
CLAIM_S = 15.0
RETRY_S = 1.0
MODEL_WAIT_S = 900.0


@dataclass
class _Run:
    """A batch while it is run here. missing_since: models that nobody serves now, on the monotonic clock."""

    batch_id: str
    caller: Caller
    expires_at: int
    missing_since: dict[str | None, float] = field(default_factory=dict)


class BatchRunner:
    def __init__(
        self, gateway: Gateway, store: BatchStore, ttl_s: int, look_every_s: float, max_running: int
    ) -> None:
        self._gateway, self._store, self._ttl_s = gateway, store, ttl_s
        self._look_every_s, self._max_running = look_every_s, max_running
        self._newest = ""
        self._id = uuid.uuid4().hex
        self._running: dict[str, asyncio.Task[None]] = {}
        self._unwanted: set[str] = set()  # cancelled by their client: their jobs need not go on
        self._looking: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._looking = asyncio.create_task(self._look(), name="batches")

    async def stop(self) -> None:
        """The jobs of lines go on; another gateway finds them."""
        await end(self._looking, *self._running.values())
        await self._store.aclose()

    async def _look(self) -> None:
        while True:
            try:
                await self._take_open()
            except BrokerError as away:
                log.warning("batches not looked for", extra={"error": str(away)})
            except Exception:  # a defect of ours must not end the batches for good
                log.exception("batches failed")
            await asyncio.sleep(self._look_every_s)

    async def _take_open(self) -> None:
        self._running = {name: task for name, task in self._running.items() if not task.done()}
        waiting = set(await self._store.open_batches()) - self._running.keys()
        while waiting:
            batch_id = min(waiting, key=self._turn_of)
            waiting.remove(batch_id)
            if len(self._running) >= self._max_running and not await self._is_cancelled(batch_id):
                continue
            if await self._store.take(batch_id, self._id, CLAIM_S):
                self._newest = batch_id
                self._running[batch_id] = asyncio.create_task(self._run(batch_id), name=batch_id)

    async def _is_cancelled(self, batch_id: str) -> bool:
        """Such a one needs no place among the running ones: there is nothing to run."""
        stored = await self._store.batch(batch_id)
        return stored is not None and stored.state == "cancelling"

    def _turn_of(self, batch_id: str) -> tuple[int, bool, str]:
        """Owners with fewer batches here come first; then round and round by name: none is left out."""
        same = sum(owner_of(running) == owner_of(batch_id) for running in self._running)
        return same, batch_id <= self._newest, batch_id

    async def _run(self, batch_id: str) -> None:
        try:
            if await self._work(batch_id):
                await self._store.close_batch(batch_id)
        except BrokerError as away:
            log.warning("batch interrupted", extra={"batch_id": batch_id, "error": str(away)})
        except Exception:
            log.exception("batch failed", extra={"batch_id": batch_id})
        finally:
            self._unwanted.discard(batch_id)
            with contextlib.suppress(BrokerError):
                await self._store.let_go(batch_id, self._id)

    async def _work(self, batch_id: str) -> bool:
        """True where the batch has ended; False where it is another runner's now."""
        stored = await self._store.batch(batch_id)
        if stored is None or stored.state not in RUNNING:  # whoever ended it could not close it
            return True
        if stored.state == "cancelling":  # before any line of it was run here
            await self._cancel_begun(batch_id)
            await self._store.move(batch_id, "cancelled", int(time.time()), "cancelling")
            return True
        about = AboutBatch.model_validate_json(stored.about)
        content = await self._store.content(stored_name(owner_of(batch_id), about.input_file_id))
        if content is None:
            await self._store.move(batch_id, "expired", int(time.time()), "in_progress", "cancelling")
            return True
        caller = Caller(owner_of(batch_id), None, about.tokens_in_flight, (PRIORITY,))
        run = _Run(batch_id, caller, about.expires_at)
        lines = asyncio.create_task(self._lines(run, content_lines(content)))
        del content  # the lines are as large
        try:
            return await self._watch(batch_id, lines)
        finally:
            await end(lines)

    async def _watch(self, batch_id: str, lines: asyncio.Task[None]) -> bool:
        """Keeps the claim while the lines run; cancels them where the client asks for it."""
        while not (await asyncio.wait({lines}, timeout=self._look_every_s))[0]:
            if not await self._store.take(batch_id, self._id, CLAIM_S):
                return False
            stored = await self._store.batch(batch_id)
            if stored is None or stored.state != "in_progress":  # another runner may have ended it meanwhile
                self._unwanted.add(batch_id)
                await end(lines)
                await self._store.move(batch_id, "cancelled", int(time.time()), "cancelling")
                return True
        lines.result()
        # Cancelled after its last line: it has ended all the same.
        now = int(time.time())
        await self._store.move(batch_id, "completed", now, "in_progress")
        await self._store.move(batch_id, "cancelled", now, "cancelling")
        return True

    async def _cancel_begun(self, batch_id: str) -> None:
        """What a runner before us has left in the queue: of the first lines without a result so many."""
        done = await self._store.done_lines(batch_id)
        without = (number for number in itertools.count(1) if number not in done)
        for number in itertools.islice(without, IN_FLIGHT):
            held = await self._gateway.broker.keyed_job(_key(_request_id(batch_id, number)))
            if held is not None:
                await self._gateway.broker.cancel(held.job_id)

    async def _lines(self, run: _Run, lines: list[bytes]) -> None:
        done = await self._store.done_lines(run.batch_id)
        left = iter([(number, raw) for number, raw in enumerate(lines, start=1) if number not in done])
        async with asyncio.TaskGroup() as group:
            for _ in range(IN_FLIGHT):
                group.create_task(self._some_lines(run, left))

    async def _some_lines(self, run: _Run, left: Iterable[tuple[int, bytes]]) -> None:
        metrics = self._gateway.metrics
        for number, raw in left:
            request_id = _request_id(run.batch_id, number)
            line = BatchLine.model_validate_json(raw)
            try:
                reason, body = await self._answer(run, line, request_id)
                status, count = 200, partial(metrics.succeeded, reason)
            except Exception as exc:
                error = as_api_error(exc)
                if error is not exc and not isinstance(exc, ValueError):
                    log.exception("line failed", extra={"request_id": request_id})
                status, body = error.status, error.body()
                count = partial(metrics.failed, error.code, error.status)
            response = {"status_code": status, "request_id": request_id, "body": body}
            result = {"id": request_id, "custom_id": line.custom_id, "line": number, "response": response}
            text = json.dumps(result | {"error": None})
            await self._store.put_line(run.batch_id, number, text, self._ttl_s, failed=status != 200)
            count()  # not before: a line whose result was not stored is run, and counted, again

    async def _answer(self, run: _Run, line: BatchLine, request_id: str) -> tuple[str, dict[str, Any]]:
        """Why it ended, and the body."""
        submission = await asyncio.to_thread(_submission, line)
        idempotency = Idempotency(_key(request_id), "batch")
        while True:
            try:
                with renaming(submission.renamed):
                    accepted = await self._gateway.submit(
                        submission, request_id, idempotency, caller=run.caller, deadline_at=run.expires_at
                    )
                    run.missing_since.pop(submission.model, None)
                    description = await self._whole(run.batch_id, accepted)
                    return description.finish_reason, _worded(line, accepted.job, description)
            except (TooBusy, Unavailable, DeadlineExceeded) as later:
                await asyncio.sleep(later.retry_after_s or RETRY_S)
            except NotFound:  # of its model: other workers are there
                since = run.missing_since.setdefault(submission.model, time.monotonic())
                if time.monotonic() - since >= MODEL_WAIT_S:
                    raise
                await asyncio.sleep(RETRY_S)

    async def _whole(self, batch_id: str, accepted: Accepted) -> Description:
        answer = Answer(accepted.job, time.monotonic(), replayed=accepted.replayed)
        following = self._gateway.follow(accepted.job, answer, left_s=accepted.left_s)
        try:
            async with contextlib.aclosing(following) as events:
                async for event in events:
                    if event.type == "done":
                        return answer.description(event)
        except asyncio.CancelledError:
            if batch_id in self._unwanted:
                await self._gateway.leave(accepted.job, answer)
            raise
        raise Unavailable("The queue lost this job.", code="job_lost")


def _request_id(batch_id: str, number: int) -> str:
    return f"{batch_id.partition('/')[2]}-{number}"


def _key(request_id: str) -> str:
    return hashlib.sha256(request_id.encode()).hexdigest()


def _submission(line: BatchLine) -> Submission:
    raw = json.dumps(line.body).encode()
    submission = submission_of_json(raw) if line.url == "/v1/describe" else chat_of_json(raw).submission
    if submission.fields.stream:
        raise BadField("stream", "A line of a batch cannot be streamed.", code="unsupported_value")
    if submission.fields.service_tier == "default":
        raise BadField("service_tier", "The lines of a batch are 'flex'.", code="unsupported_value")
    return submission


def _worded(line: BatchLine, job: Job, description: Description) -> dict[str, Any]:
    if line.url == "/v1/describe":
        return description_json(description)
    return ChatWords(job, include_usage=False).completion(description).model_dump(mode="json")
