"""Runs the lines of batches: a few at a time, behind everything else, wherever a gateway is alive.

Invariant: each line ends in exactly one result, whatever dies: its job has an idempotency key made of batch
and line, so a gateway that takes over finds the job (and its answer) instead of asking twice. A busy or
absent fleet delays lines and fails none.
Must not know: HTTP, how batches are shown, Redis.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import time
import uuid
from collections.abc import Iterable
from typing import Any

from service.answers import Answer, description_json
from service.batches import RUNNING, AboutBatch, content_lines, stored_name
from service.broker.base import BrokerError, Idempotency
from service.broker.batches import BatchStore
from service.callers import Caller
from service.chat_intake import chat_of_json
from service.chat_words import ChatWords
from service.errors import BadField, TooBusy, Unavailable, as_api_error
from service.gateway import Accepted, Gateway
from service.intake import Submission, submission_of_json
from service.protocol import Job, Priority
from service.schemas import Description
from service.schemas_batch import BatchLine

log = logging.getLogger(__name__)

IN_FLIGHT = 4
PRIORITY: Priority = "batch"
CLAIM_S = 15.0
RETRY_S = 1.0
RECANCEL_S = 0.1


class BatchRunner:
    def __init__(self, gateway: Gateway, store: BatchStore, ttl_s: int, look_every_s: float) -> None:
        self._gateway, self._store, self._ttl_s = gateway, store, ttl_s
        self._look_every_s = look_every_s
        self._id = uuid.uuid4().hex
        self._running: dict[str, asyncio.Task[None]] = {}
        self._unwanted: set[str] = set()  # cancelled by their client: their jobs need not go on
        self._looking: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._looking = asyncio.create_task(self._look(), name="batches")

    async def stop(self) -> None:
        """The jobs of lines go on; another gateway finds them."""
        await _end([*([self._looking] if self._looking else []), *self._running.values()])
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
        for batch_id in await self._store.open_batches():
            if batch_id not in self._running and await self._store.take(batch_id, self._id, CLAIM_S):
                self._running[batch_id] = asyncio.create_task(self._run(batch_id), name=batch_id)

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
        about = AboutBatch.model_validate_json(stored.about)
        content = await self._store.content(stored_name(owner_of(batch_id), about.input_file_id))
        if content is None:
            await self._store.move(batch_id, "expired", int(time.time()), "in_progress", "cancelling")
            return True
        caller = Caller(owner_of(batch_id), None, about.tokens_in_flight, (PRIORITY,))
        lines = asyncio.create_task(self._lines(batch_id, caller, content_lines(content)))
        try:
            return await self._watch(batch_id, lines)
        finally:
            await _end([lines])

    async def _watch(self, batch_id: str, lines: asyncio.Task[None]) -> bool:
        """Keeps the claim while the lines run; cancels them where the client asks for it."""
        while not (await asyncio.wait({lines}, timeout=self._look_every_s))[0]:
            if not await self._store.take(batch_id, self._id, CLAIM_S):
                return False
            stored = await self._store.batch(batch_id)
            if stored is None or stored.state == "cancelling":
                self._unwanted.add(batch_id)
                await _end([lines])
                await self._store.move(batch_id, "cancelled", int(time.time()), "cancelling")
                return True
        lines.result()
        # Cancelled after its last line: it has ended all the same.
        now = int(time.time())
        await self._store.move(batch_id, "completed", now, "in_progress")
        await self._store.move(batch_id, "cancelled", now, "cancelling")
        return True

    async def _lines(self, batch_id: str, caller: Caller, lines: list[bytes]) -> None:
        done = await self._store.done_lines(batch_id)
        left = iter([(number, raw) for number, raw in enumerate(lines, start=1) if number not in done])
        async with asyncio.TaskGroup() as group:
            for _ in range(IN_FLIGHT):
                group.create_task(self._some_lines(batch_id, caller, left))

    async def _some_lines(self, batch_id: str, caller: Caller, left: Iterable[tuple[int, bytes]]) -> None:
        for number, raw in left:
            request_id = f"{batch_id.partition('/')[2]}-{number}"
            line = BatchLine.model_validate_json(raw)
            try:
                status, body = 200, await self._answer(batch_id, caller, line, request_id)
            except Exception as exc:
                error = as_api_error(exc)
                if error is not exc and not isinstance(exc, ValueError):
                    log.exception("line failed", extra={"request_id": request_id})
                status, body = error.status, error.body()
            response = {"status_code": status, "request_id": request_id, "body": body}
            result = {"id": request_id, "custom_id": line.custom_id, "line": number, "response": response}
            text = json.dumps(result | {"error": None})
            await self._store.put_line(batch_id, number, text, self._ttl_s, failed=status != 200)

    async def _answer(
        self, batch_id: str, caller: Caller, line: BatchLine, request_id: str
    ) -> dict[str, Any]:
        submission = await asyncio.to_thread(_submission, line)
        idempotency = Idempotency(hashlib.sha256(request_id.encode()).hexdigest(), "batch")
        while True:
            try:
                until = time.time() + self._gateway.settings.job_timeout_s
                accepted = await self._gateway.submit(
                    submission, request_id, idempotency, caller=caller, deadline_at=until
                )
                return _worded(line, accepted.job, await self._whole(batch_id, accepted))
            except (TooBusy, Unavailable) as later:
                await asyncio.sleep(later.retry_after_s or RETRY_S)

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


def owner_of(name: str) -> str:
    """Of a batch by the name it is stored under."""
    return name.partition("/")[0]


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


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    """Again and again: redis-py swallows a cancellation that meets an arriving reply."""
    while running := [task for task in tasks if not task.done()]:
        for task in running:
            task.cancel()
        await asyncio.wait(running, timeout=RECANCEL_S)
