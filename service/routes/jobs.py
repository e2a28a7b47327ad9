"""`/v1/jobs/{id}`: what became of a job, its events from any point on, and its end before its time.

Invariant: nothing here changes a job but DELETE; who leaves an event stream leaves the job running.
Must not know: how the job was asked for.
"""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Request, Response
from fastapi.responses import JSONResponse

from service.answers import Answer
from service.callers import caller_of
from service.describe_words import STREAM, DescribeWords
from service.exchange import told
from service.gateway import Gateway
from service.jobs import LAST_EVENT_ID, has_seen_the_end, job_json, resume_after
from service.schemas import error_responses
from service.schemas_jobs import JobObject
from service.sse import EventStream, with_heartbeat

router = APIRouter(tags=["jobs"])
JobId = Annotated[str, Path(examples=["desc-3f1c2a9be07d4c55a1d0b6f2f7f0c9ab"])]
LastEventId = Annotated[
    str | None,
    Header(alias=LAST_EVENT_ID, description="Goes on behind this event; without it, from the first."),
]

JOB: dict[int | str, dict[str, Any]] = {200: {"model": JobObject}, **error_responses(401, 404, 503)}
EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "`token` events (one a round), then `done` with the whole answer, or `error`.",
        "content": STREAM,
    },
    204: {"description": "`Last-Event-ID` was the last event: there is no more, do not reconnect."},
    **error_responses(400, 401, 404, 503),
}


@router.get("/v1/jobs/{job_id}", summary="A job's status and result", response_model=None, responses=JOB)
async def get_job(job_id: JobId, request: Request) -> Response:
    gateway: Gateway = request.app.state.gateway
    return JSONResponse(job_json(await gateway.job(job_id, caller_of(request))))


@router.delete("/v1/jobs/{job_id}", summary="Cancel a job", response_model=None, responses=JOB)
async def cancel_job(job_id: JobId, request: Request) -> Response:
    """Idempotent: a job that has ended stays as it ended."""
    gateway: Gateway = request.app.state.gateway
    return JSONResponse(job_json(await gateway.cancel(job_id, caller_of(request))))


@router.get(
    "/v1/jobs/{job_id}/events",
    summary="A job's events as they come",
    response_class=Response,
    response_model=None,
    responses=EVENTS,
)
async def job_events(job_id: JobId, request: Request, last_event_id: LastEventId = None) -> Response:
    gateway: Gateway = request.app.state.gateway
    status = await gateway.job(job_id, caller_of(request))
    after = resume_after(last_event_id, status)
    if has_seen_the_end(after, status.terminal):
        return Response(status_code=204)
    answer = Answer(status.job, time.monotonic(), replayed=True)
    answer.last_id = after or answer.last_id
    following = gateway.follow(status.job, answer, after, status.left_s)
    source = told(following, status.job, answer, DescribeWords())
    return EventStream(with_heartbeat(source, gateway.settings.sse_heartbeat_s), _nothing)


async def _nothing() -> None:
    pass
