"""One POST that asks for an answer: admitted, read, submitted, then answered whole, streamed, or as a job.

Invariant: every request ends in exactly one of: the answer, one error, an accepted job, or a client that
left; each answer and each error is counted once (a background job's by `Background`). A job that its one
client leaves is cancelled; a job that can be asked for again (it runs in the background, or it has an
idempotency key) goes on.
Must not know: how a body is read, or in which words the answer is given (`Asked`, `Wording`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

from fastapi import Request, Response

from service.answers import Answer, server_timing
from service.callers import Caller, caller_of
from service.deadlines import deadline_at, timeout_s
from service.errors import ApiError, BodyTimeout, ClientGone, TooBusy, as_api_error, renaming
from service.gateway import Accepted, Gateway
from service.idempotency import read_idempotency
from service.intake import Submission
from service.jobs import accepted_response, job_url
from service.metrics import GatewayMetrics
from service.protocol import Event, Job, JobStatus
from service.schemas import Description
from service.sse import EventStream, unless_gone, with_heartbeat

log = logging.getLogger(__name__)
T = TypeVar("T")


class Wording(Protocol):
    """One answer in the words of its API."""

    def whole(self, description: Description) -> str: ...
    def token(self, event: Event) -> bytes: ...
    def done(self, description: Description, event_id: str) -> bytes: ...
    def error(self, error: ApiError, event_id: str) -> bytes: ...


@dataclass(frozen=True)
class Asked:
    """background: answer with the job itself."""

    submission: Submission
    words: Callable[[Job], Wording]
    background: bool = False


async def exchange(request: Request, read: Callable[[Request], Awaitable[Asked]]) -> Response:
    gateway: Gateway = request.app.state.gateway
    arrived_at = time.monotonic()
    try:
        async with contextlib.AsyncExitStack() as held:
            traceparent = held.enter_context(_traced(gateway, request))
            await _enter(gateway, request, held)
            asked = await _read(request, read, gateway.settings.body_timeout_s)
            with renaming(asked.submission.renamed):
                return await _answer(gateway, request, asked, held, arrived_at, traceparent)
    except Exception as exc:
        _count(gateway.metrics, exc)
        raise


async def _answer(
    gateway: Gateway,
    request: Request,
    asked: Asked,
    held: contextlib.AsyncExitStack,
    arrived_at: float,
    traceparent: str,
) -> Response:
    caller, settings = caller_of(request), gateway.settings
    idempotency = await read_idempotency(request.headers, asked.submission, caller)
    longest_s = settings.job_timeout_s if asked.background else settings.request_timeout_s
    until = deadline_at(arrived_at, timeout_s(request.headers, longest_s))
    accepted = await gateway.submit(
        asked.submission,
        request.state.request_id,
        idempotency,
        caller=caller,
        deadline_at=until,
        traceparent=traceparent,
    )
    headers = _headers(accepted)
    request.state.job_id = accepted.job.id
    if asked.background:
        if not accepted.replayed:
            gateway.background.add(accepted.job.id)
        return accepted_response(await _status(gateway, accepted, caller), headers)
    job, words = accepted.job, asked.words(accepted.job)
    answer = Answer(job, arrived_at, replayed=accepted.replayed)
    left_s, its_own = until - time.time(), accepted.left_s  # its own: a job's that was asked for earlier
    early = its_own is not None and left_s < its_own
    left_s = left_s if its_own is None else min(left_s, its_own)
    following = gateway.follow(job, answer, left_s=left_s, leaves_early=early)
    if idempotency is None:
        held.push_async_callback(gateway.leave, job, answer)
    if asked.submission.fields.stream:
        source = told(
            following, job, answer, words, metrics=gateway.metrics, renamed=asked.submission.renamed
        )
        beating = with_heartbeat(source, settings.sse_heartbeat_s)
        return EventStream(beating, held.pop_all().aclose, headers)
    description = await unless_gone(request.receive, _whole(gateway.metrics, following, answer))
    if description is None:
        raise ClientGone("The client went away.")
    timing = server_timing(description.metrics, answer.elapsed_s())
    return Response(words.whole(description), media_type="application/json", headers=headers | timing)


async def _status(gateway: Gateway, accepted: Accepted, caller: Caller) -> JobStatus:
    """Nothing is asked of a job that was accepted just now: its client hears its id, whatever fails next."""
    if accepted.replayed:
        return await gateway.job(accepted.job.id, caller)
    return JobStatus(accepted.job, "queued", attempt=0, last_seq=0, cancel_requested=False, terminal=None)


def _traced(gateway: Gateway, request: Request) -> contextlib.AbstractContextManager[str]:
    """A stream's span ends with the stream."""
    path: str = request.scope["path"]
    return gateway.tracing.request(request.method, path, request.headers, request.state.request_id)


def _headers(accepted: Accepted) -> dict[str, str]:
    headers = {"Content-Location": job_url(accepted.job.id)}
    return headers | {"Idempotency-Replayed": "true"} if accepted.replayed else headers


def _count(metrics: GatewayMetrics, exc: Exception) -> None:
    error = as_api_error(exc)
    metrics.failed(error.code, error.status)
    if isinstance(error, TooBusy):
        metrics.rejected(error.code)


async def _enter(gateway: Gateway, request: Request, held: contextlib.AsyncExitStack) -> None:
    try:
        held.enter_context(gateway.admission)
    except TooBusy:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(gateway.settings.body_timeout_s):
                async for _ in request.stream():  # a client still sending would lose the answer to a reset
                    pass
        raise


@contextlib.asynccontextmanager
async def body_of(request: Request, read: Callable[[Request], Awaitable[T]]) -> AsyncIterator[T]:
    """Where no answer of the model is asked for: read in time, and one of the open requests until then."""
    gateway: Gateway = request.app.state.gateway
    async with contextlib.AsyncExitStack() as held:
        try:
            await _enter(gateway, request, held)
        except TooBusy as busy:
            gateway.metrics.rejected(busy.code)
            raise
        yield await _read(request, read, gateway.settings.body_timeout_s)


async def _read(request: Request, read: Callable[[Request], Awaitable[T]], timeout_s: float) -> T:
    """A body that trickles in holds a place in admission, so it has a deadline too."""
    try:
        async with asyncio.timeout(timeout_s):
            return await read(request)
    except TimeoutError as late:
        raise BodyTimeout(f"The body did not arrive within {timeout_s:g} s.") from late


async def _whole(
    metrics: GatewayMetrics, following: AsyncGenerator[Event, None], answer: Answer
) -> Description | None:
    async with contextlib.aclosing(following) as events:
        async for event in events:
            if event.type == "done":
                return _finish(metrics, answer, event)
    return None


async def told(
    following: AsyncGenerator[Event, None],
    job: Job,
    answer: Answer,
    words: Wording,
    *,
    metrics: GatewayMetrics | None = None,
    renamed: Mapping[str, str] | None = None,
) -> AsyncGenerator[bytes, None]:
    """The job's events as server-sent events. metrics: None where this is not the answer that counts.

    renamed: as in `Submission`.
    """
    try:
        with renaming(renamed or {}):
            async with contextlib.aclosing(following) as events:
                async for event in events:
                    if event.type == "token":
                        yield words.token(event)
                    elif event.type == "done":
                        yield words.done(_finish(metrics, answer, event), event.id)
    except (GeneratorExit, asyncio.CancelledError):
        if metrics is not None and not answer.ended:
            metrics.failed(ClientGone.code, ClientGone.status)
        raise
    except Exception as exc:  # the headers are out: the error can only be an event
        error = as_api_error(exc)
        fields = {"job_id": job.id, "request_id": job.request_id, "err": error.code}
        if error is not exc:
            log.exception("stream broke", extra=fields)
        else:
            log.info("stream failed", extra=fields)
        if metrics is not None:
            metrics.failed(error.code, error.status)
        yield words.error(error, answer.last_id)


def _finish(metrics: GatewayMetrics | None, answer: Answer, event: Event) -> Description:
    description = answer.description(event)
    if metrics is not None:
        metrics.succeeded(description.finish_reason, answer.elapsed_s(), answer.ttft_s)
    return description
