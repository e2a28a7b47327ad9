"""`POST /v1/describe`: one picture (or several) in, its description out: whole, streamed, or as a job.

Must not know: how a request is admitted, run and counted (`exchange`).
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from service.deadlines import HEADER as TIMEOUT_HEADER
from service.describe_words import STREAM, DescribeWords
from service.exchange import Asked, exchange
from service.idempotency import HEADER, MAX_KEY_CHARS
from service.intake import read_submission
from service.jobs import prefers_async
from service.openapi import HEADERS
from service.schemas import DescribeBody, DescribeFields, Description, error_responses
from service.schemas_jobs import JobObject

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


def header(name: str, description: str, **schema: Any) -> dict[str, Any]:
    """A request header that the route reads itself."""
    about = {"name": name, "in": "header", "required": False, "description": description}
    return {**about, "schema": {"type": "string", **schema}}


IDEMPOTENCY_KEY = header(
    HEADER,
    "The same key with the same request gives the same job: its answer if it has ended, else the wait for"
    " it. The job then outlives its client. Kept as long as the result.",
    minLength=1,
    maxLength=MAX_KEY_CHARS,
)
REQUEST_TIMEOUT = header(
    TIMEOUT_HEADER,
    "How long the answer may take, from the request's arrival; then 504, and the work is dropped. A"
    " background job ends then, too. Default and limit are the service's settings.",
    pattern="^[0-9]+$",
)
DOCUMENTED = {
    "parameters": [
        header("Prefer", "`respond-async`: 202 and a job at once, instead of the answer."),
        IDEMPOTENCY_KEY,
        REQUEST_TIMEOUT,
    ],
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": _multipart_schema()},
            "application/json": {"schema": DescribeBody.model_json_schema()},
        },
    },
}
LOCATION = {"description": "The job.", "schema": {"type": "string"}}
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "model": Description,
        "description": "The answer; with `stream`, `token` events (one a round), then `done` or `error`.",
        "content": STREAM,
        "headers": {"Server-Timing": HEADERS["Server-Timing"]},
    },
    202: {
        "model": JobObject,
        "description": "Accepted, for `Prefer: respond-async`; `stream` does not matter then.",
        "headers": {"Location": LOCATION},
    },
    **error_responses(400, 401, 403, 408, 409, 413, 415, 422, 429, 500, 503, 504),
}


@router.post(
    "/v1/describe",
    response_model=None,
    responses=ANSWERS,
    openapi_extra=DOCUMENTED,
    summary="Describe a picture",
)
async def describe(request: Request) -> Response:
    return await exchange(request, _read)


async def _read(request: Request) -> Asked:
    submission = await read_submission(request)
    background = prefers_async(request.headers.getlist("prefer"))
    return Asked(submission, lambda _job: DescribeWords(), background)
