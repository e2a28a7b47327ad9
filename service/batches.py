"""Batches: files of requests taken in, checked line by line, and shown as OpenAI shows them.

Invariant: a batch whose lines cannot be read is refused as a whole, with every faulty line named, before
anything runs; what a single line's request gets wrong is that line's own result.
Must not know: how lines are run (`batch_runner`), HTTP.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from dataclasses import dataclass

from pydantic import BaseModel, ValidationError

from service.admission import MAX_RETRY_S
from service.broker.batches import BatchStore, StoredBatch, owner_of, stored_name
from service.callers import Caller
from service.errors import ApiError, BadField, Forbidden, NotFound, TooBusy, TooLarge, field_error
from service.protocol import Priority
from service.queue_errors import queue_errors
from service.schemas_batch import (
    BatchBody,
    BatchError,
    BatchErrors,
    BatchLine,
    BatchObject,
    Endpoint,
    FileObject,
    RequestCounts,
)

FILE = re.compile(r"(file|output|errors)-([0-9a-f]{32})")
BATCH = re.compile(r"batch-[0-9a-f]{32}")
MAX_ERRORS_SHOWN = 100
PRIORITY: Priority = "batch"
RUNNING, ENDED = ("in_progress", "cancelling"), ("completed", "cancelled")


class AboutBatch(BaseModel):
    """What never changes of a batch. tokens_in_flight: of the key that made it, None for no limit."""

    tokens_in_flight: int | None = None

    endpoint: Endpoint
    input_file_id: str
    created_at: int
    expires_at: int
    total: int
    metadata: dict[str, str] | None = None
    errors: list[BatchError] = []


@dataclass(frozen=True)
class BatchLimits:
    max_lines: int
    max_bytes: int
    ttl_s: int
    max_open: int
    store_bytes: int


class Batches:
    """Files and batches; `limits.ttl_s` after their making they are forgotten. owner: the API key's name."""

    def __init__(self, store: BatchStore, limits: BatchLimits) -> None:
        self._store = store
        self._limits = limits

    async def take_file(self, owner: str, filename: str, content: bytes) -> FileObject:
        if len(content) > self._limits.max_bytes:
            raise TooLarge(
                f"The file has {len(content)} bytes; at most {self._limits.max_bytes} are taken.",
                param="file",
            )
        if not content.strip():
            raise BadField("file", "The file is empty.")
        now = int(time.time())
        about = FileObject(
            id=f"file-{uuid.uuid4().hex}",
            bytes=len(content),
            created_at=now,
            expires_at=now + self._limits.ttl_s,
            filename=filename,
        )
        with queue_errors():
            name = stored_name(owner, about.id)
            room_bytes, ttl_s = self._limits.store_bytes, self._limits.ttl_s
            if not await self._store.put_file(name, about.model_dump_json(), content, ttl_s, room_bytes):
                raise TooBusy(
                    "There is no room for more files; delete some, or wait until they expire.",
                    code="files_full",
                    retry_after_s=MAX_RETRY_S,
                )
        return about

    async def file(self, owner: str, file_id: str) -> FileObject:
        if file_id.startswith("file-"):
            with queue_errors():
                found = await self._store.file(stored_name(owner, file_id))
            if found is None:
                raise _no_file()
            return FileObject.model_validate_json(found.about)
        content = await self.content(owner, file_id)
        batch = await self.batch(owner, f"batch-{file_id.partition('-')[2]}")
        return FileObject(
            id=file_id,
            bytes=len(content),
            created_at=batch.completed_at or batch.cancelled_at or batch.created_at,
            expires_at=batch.expires_at,
            filename=f"{file_id}.jsonl",
            purpose="batch_output",
        )

    async def content(self, owner: str, file_id: str) -> bytes:
        """A result is there once its batch has ended and has such lines."""
        match = FILE.fullmatch(file_id)
        content: bytes | None = None
        with queue_errors():
            if match is not None and match[1] == "file":
                content = await self._store.content(stored_name(owner, file_id))
            elif match is not None:
                name = stored_name(owner, f"batch-{match[2]}")
                batch = await self._store.batch(name)
                if batch is not None and batch.state in ENDED:
                    content = await self._store.results(name, failed=match[1] == "errors") or None
        if content is None:
            raise _no_file()
        return content

    async def delete_file(self, owner: str, file_id: str) -> None:
        with queue_errors():
            name = stored_name(owner, file_id)
            deleted = file_id.startswith("file-") and await self._store.delete_file(name)
        if not deleted:
            raise _no_file()

    async def create(self, caller: Caller, body: BatchBody) -> BatchObject:
        if PRIORITY not in caller.priorities:
            raise Forbidden("This API key may not ask for batch work.", code="service_tier_not_allowed")
        file = stored_name(caller.name, body.input_file_id)
        with queue_errors():
            await self._check_open(caller)
            content = await self._store.content(file)
        if content is None:
            raise NotFound("No such file, or it has expired.", param="input_file_id", code="file_not_found")
        lines = content_lines(content)
        if len(lines) > self._limits.max_lines:
            raise TooLarge(
                f"The file has {len(lines)} lines; at most {self._limits.max_lines} are taken.",
                param="input_file_id",
                code="too_many_lines",
            )
        errors = await asyncio.to_thread(faults, lines, body.endpoint)
        now, batch_id = int(time.time()), f"batch-{uuid.uuid4().hex}"
        about = AboutBatch(
            endpoint=body.endpoint,
            input_file_id=body.input_file_id,
            created_at=now,
            expires_at=now + self._limits.ttl_s,
            total=len(lines),
            metadata=body.metadata,
            tokens_in_flight=caller.tokens_in_flight,
            errors=errors[:MAX_ERRORS_SHOWN],
        )
        state = "failed" if errors else "in_progress"
        with queue_errors():
            text, ttl_s = about.model_dump_json(), self._limits.ttl_s
            name = stored_name(caller.name, batch_id)
            await self._store.create(name, text, state, now, ttl_s, file)
        return await self.batch(caller.name, batch_id)

    async def _check_open(self, caller: Caller) -> None:
        """Those of many requests at once may be a few more."""
        open_batches = await self._store.open_batches()
        if sum(owner_of(name) == caller.name for name in open_batches) >= self._limits.max_open:
            raise TooBusy(
                f"{self._limits.max_open} batches are unfinished; at most so many are taken.",
                code="batches_full",
                retry_after_s=MAX_RETRY_S,
            )

    async def batch(self, owner: str, batch_id: str) -> BatchObject:
        with queue_errors():
            name = stored_name(owner, batch_id)
            found = await self._store.batch(name) if BATCH.fullmatch(batch_id) else None
        if found is None:
            raise NotFound("No such batch, or it has expired.", param="batch_id", code="batch_not_found")
        return batch_object(batch_id, found)

    async def cancel(self, owner: str, batch_id: str) -> BatchObject:
        """Idempotent: a batch that has ended stays as it ended."""
        await self.batch(owner, batch_id)
        with queue_errors():
            name = stored_name(owner, batch_id)
            await self._store.move(name, "cancelling", int(time.time()), "in_progress")
        return await self.batch(owner, batch_id)


def _no_file() -> NotFound:
    return NotFound("No such file, or it has expired.", param="file_id", code="file_not_found")


def content_lines(content: bytes) -> list[bytes]:
    return [line for line in content.split(b"\n") if line.strip()]


def batch_object(batch_id: str, stored: StoredBatch) -> BatchObject:
    about, name = AboutBatch.model_validate_json(stored.about), batch_id.partition("-")[2]
    ended = stored.state in ENDED
    at = {f"{state}_at": when for state, when in stored.at.items()}
    return BatchObject.model_validate(
        {
            **about.model_dump(exclude={"total", "errors", "tokens_in_flight"}),
            **at,
            "id": batch_id,
            "status": stored.state,
            "errors": BatchErrors(data=about.errors) if about.errors else None,
            "output_file_id": f"output-{name}" if ended and stored.completed else None,
            "error_file_id": f"errors-{name}" if ended and stored.failed else None,
            "request_counts": RequestCounts(
                total=about.total, completed=stored.completed, failed=stored.failed
            ),
        }
    )


def faults(lines: list[bytes], endpoint: Endpoint) -> list[BatchError]:
    """What keeps lines from being run at all."""
    found: list[BatchError] = []
    seen: dict[str, int] = {}
    for number, raw in enumerate(lines, start=1):
        try:
            line = BatchLine.model_validate_json(raw)
            if line.url != endpoint:
                raise BadField("url", f"'url' is {line.url}, but the batch's endpoint is {endpoint}.")
            if line.custom_id in seen:
                raise BadField("custom_id", f"'custom_id' is that of line {seen[line.custom_id]} already.")
            seen[line.custom_id] = number
        except (ApiError, ValidationError) as fault:
            error = fault if isinstance(fault, ApiError) else field_error(fault.errors())
            message = f"Line {number}: {error.message}"
            found.append(BatchError(line=number, code=error.code, message=message, param=error.param))
    return found
