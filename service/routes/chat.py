"""`POST /v1/chat/completions`: OpenAI's way to ask for what `/v1/describe` gives.

Must not know: how a request is admitted, run and counted (`exchange`).
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from service.chat_intake import read_chat
from service.chat_words import STREAM_EXAMPLE, ChatWords
from service.exchange import Asked, exchange
from service.openapi import HEADERS, event_stream, inlined
from service.routes.describe import IDEMPOTENCY_KEY, REQUEST_TIMEOUT
from service.schemas import error_responses
from service.schemas_chat import ChatBody, ChatCompletion

router = APIRouter(tags=["chat"])

DOCUMENTED = {
    "parameters": [IDEMPOTENCY_KEY, REQUEST_TIMEOUT],
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": inlined(ChatBody.model_json_schema())}},
    },
}
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "model": ChatCompletion,
        "description": "The completion; with `stream`, `chat.completion.chunk` objects, then `[DONE]`.",
        "content": event_stream(STREAM_EXAMPLE, "JSON: a ChatChunk or an ErrorBody; last, `[DONE]`."),
        "headers": {"Server-Timing": HEADERS["Server-Timing"]},
    },
    **error_responses(400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 500, 503, 504),
}


@router.post(
    "/v1/chat/completions",
    response_model=None,
    responses=ANSWERS,
    openapi_extra=DOCUMENTED,
    summary="Answer a chat with pictures (OpenAI)",
)
async def chat(request: Request) -> Response:
    return await exchange(request, _read)


async def _read(request: Request) -> Asked:
    chat = await read_chat(request)
    return Asked(
        chat.submission,
        lambda job: ChatWords(job, include_usage=chat.include_usage),
    )
