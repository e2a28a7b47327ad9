"""`POST /v1/describe`: one picture (or several) in, its description out, whole or streamed.

Invariant: every request ends in exactly one of: the answer, one error, or a cancelled job whose client left;
each is counted once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from service.answers import Answer, token_event
from service.errors import BodyTimeout, ClientGone, TooBusy, as_api_error
from service.gateway import Gateway
from service.intake import Submission, read_submission
from service.protocol import Event, Job
from service.schemas import DescribeBody, DescribeFields, Description, error_responses
from service.sse import MEDIA_TYPE, EventStream, encode_event, unless_gone, with_heartbeat

log = logging.getLogger(__name__)
router = APIRouter(tags=["describe"])


def _multipart_schema() -> dict[str, Any]:
    schema = DescribeFields.model_json_schema()
    file = {"type": "string", "format": "binary"}
    schema["properties"] = {
        "image": {
            "type": "array",
            "items": file,
            "minItems": 1,
            "description": "Repeat it for several pictures.",
        },
        **schema["properties"],
    }
    schema["required"] = ["image"]
    return schema


REQUEST_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {"schema": _multipart_schema()},
        "application/json": {"schema": DescribeBody.model_json_schema()},
    },
}
STREAM_EXAMPLE = (
    'id: 1-2\nevent: token\ndata: {"text":"A large","token_ids":[311,902],"drafted":[true,false]}\n\n'
    'id: 1-9\nevent: done\ndata: {"id":"desc-…","object":"description", …}\n\n'
)
ANSWERS = {
    200: {
        "model": Description,
        "description": "The answer; with `stream`, `token` events (one a round), then `done` or `error`.",
        "content": {MEDIA_TYPE: {"schema": {"type": "string"}, "example": STREAM_EXAMPLE}},
    },
    **error_responses(400, 408, 413, 415, 422, 429, 500, 503, 504),
}


@router.post(
    "/v1/describe",
    response_model=None,
    responses=ANSWERS,
    openapi_extra={"requestBody": REQUEST_BODY},
    summary="Describe a picture",
)
async def describe(request: Request) -> Response:
    gateway: Gateway = request.app.state.gateway
    try:
        return await _describe(gateway, request, arrived_at=time.monotonic())
    except Exception as exc:
        error = as_api_error(exc)
        gateway.metrics.failed(error.code)
        if isinstance(error, TooBusy):
            gateway.metrics.rejected(error.code)
        raise


async def _describe(gateway: Gateway, request: Request, arrived_at: float) -> Response:
    async with contextlib.AsyncExitStack() as held:
        await _enter(gateway, request, held)
        submission = await _read(request, gateway.settings.request_timeout_s)
        job = await gateway.submit(submission, request.state.request_id)
        answer = Answer(job, arrived_at)
        held.push_async_callback(gateway.leave, job, answer)
        if submission.fields.stream:
            source = with_heartbeat(_stream(gateway, job, answer), gateway.settings.sse_heartbeat_s)
            return EventStream(source, held.pop_all().aclose)
        description = await unless_gone(request.receive, _whole(gateway, job, answer))
        if description is None:
            raise ClientGone("The client went away.")
        return JSONResponse(_json(description))


async def _enter(gateway: Gateway, request: Request, held: contextlib.AsyncExitStack) -> None:
    try:
        held.enter_context(gateway.admission.enter())
    except TooBusy:
        async for _ in request.stream():  # a client still sending would lose the answer to a reset
            pass
        raise


async def _read(request: Request, timeout_s: float) -> Submission:
    """A body that trickles in holds a place in admission, so it has a deadline too."""
    try:
        async with asyncio.timeout(timeout_s):
            return await read_submission(request)
    except TimeoutError as late:
        raise BodyTimeout(f"The body did not arrive within {timeout_s:g} s.") from late


async def _whole(gateway: Gateway, job: Job, answer: Answer) -> Description | None:
    async with contextlib.aclosing(gateway.follow(job, answer)) as events:
        async for event in events:
            if event.type == "done":
                return _finish(gateway, answer, event)
    return None


async def _stream(gateway: Gateway, job: Job, answer: Answer) -> AsyncGenerator[bytes, None]:
    try:
        async with contextlib.aclosing(gateway.follow(job, answer)) as events:
            async for event in events:
                if event.type == "token":
                    yield encode_event("token", token_event(event).model_dump_json(), event.id)
                elif event.type == "done":
                    description = _finish(gateway, answer, event)
                    yield encode_event("done", json.dumps(_json(description)), event.id)
    except (GeneratorExit, asyncio.CancelledError):
        if not answer.ended:
            gateway.metrics.failed(ClientGone.code)
        raise
    except Exception as exc:  # the headers are out: the error can only be an event
        error = as_api_error(exc)
        if error is not exc:
            log.exception("stream broke", extra={"job_id": job.id, "request_id": job.request_id})
        gateway.metrics.failed(error.code)
        yield encode_event("error", json.dumps(error.body()), answer.last_id)


def _finish(gateway: Gateway, answer: Answer, event: Event) -> Description:
    description = answer.description(event)
    gateway.metrics.succeeded(description.finish_reason, answer.elapsed_s(), answer.ttft_s)
    return description


def _json(description: Description) -> dict[str, Any]:
    """Without the token map where none was asked for; a token map's own null stays."""
    unasked = {"token_map"} if description.token_map is None else None
    return description.model_dump(mode="json", exclude=unasked)
