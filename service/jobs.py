"""What the broker knows of a job, as the job object of the HTTP API; and the point a client resumes from.

Invariant: a job's result is made from its terminal event by the same code as a direct answer.
Must not know: the broker, or routes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi.responses import JSONResponse

from service.answers import Answer, description_json, job_error
from service.errors import BadField
from service.protocol import ATTEMPTS_APART, CANCELLED, Event, JobStatus, parse_event_id
from service.queue_errors import events_lost
from service.schemas import ErrorDetail
from service.schemas_jobs import JobObject, JobStatusName

LAST_EVENT_ID = "Last-Event-ID"
UNFINISHED: dict[str, JobStatusName] = {"queued": "queued", "running": "running"}


def job_url(job_id: str) -> str:
    return f"/v1/jobs/{job_id}"


def job_object(status: JobStatus) -> JobObject:
    job, end = status.job, status.terminal
    seen = JobObject(id=job.id, status=_status_name(status), created=int(job.created_at))
    if end is None:
        return seen
    if end.type == "done":
        seen.result = Answer(job, 0.0, replayed=True).description(end)
    else:
        seen.error = ErrorDetail.model_validate(job_error(end).body()["error"])
    return seen


def _status_name(status: JobStatus) -> JobStatusName:
    if status.terminal is None:
        return UNFINISHED.get(status.state, "running")
    if status.terminal.type == "done":
        return "completed"
    return "cancelled" if status.terminal.data.get("code") == CANCELLED else "failed"


def job_json(status: JobStatus) -> dict[str, Any]:
    seen = job_object(status)
    body = seen.model_dump(mode="json", exclude={"result", "error"})
    if seen.result is not None:
        body["result"] = description_json(seen.result)
    if seen.error is not None:
        body["error"] = seen.error.model_dump(mode="json")
    return body


def accepted_response(status: JobStatus, headers: Mapping[str, str]) -> JSONResponse:
    """202, RFC 7240's answer to `Prefer: respond-async`."""
    where = {"Location": job_url(status.job.id), "Preference-Applied": "respond-async"}
    return JSONResponse(job_json(status), status_code=202, headers={**headers, **where})


def prefers_async(prefer: list[str]) -> bool:
    """Of the values of every `Prefer` header; other preferences are no concern of ours (RFC 7240)."""
    items = [item for value in prefer for item in value.split(",")]
    return any(item.partition(";")[0].strip().lower() == "respond-async" for item in items)


def resume_after(last_event_id: str | None, status: JobStatus) -> str | None:
    """The event behind which to go on; None for the first.

    400 for an id that this job never gave; 503 for one that it gave before the queue lost it.
    """
    if last_event_id is None or last_event_id == "":
        return None
    try:
        attempt, seq = parse_event_id(last_event_id)
    except ValueError:
        raise BadField(
            LAST_EVENT_ID, f"'{LAST_EVENT_ID}' is not of the form <attempt>-<number>.", code="bad_event_id"
        ) from None
    newest = max(status.attempt, status.terminal.attempt if status.terminal else 0)
    before_a_loss = attempt // ATTEMPTS_APART < newest // ATTEMPTS_APART
    if before_a_loss and attempt > 0 and seq > status.last_seq:
        raise events_lost()
    if attempt > newest or seq > status.last_seq:
        raise BadField(LAST_EVENT_ID, f"This job has no event '{last_event_id}' yet.", code="bad_event_id")
    return last_event_id


def has_seen_the_end(after: str | None, end: Event | None) -> bool:
    return after is not None and end is not None and parse_event_id(after) >= (end.attempt, end.seq)
