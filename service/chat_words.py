"""A description in the words of OpenAI's chat completions: one object, or chunks that end in `[DONE]`.

Invariant: in a stream the role comes first and once, the finish reason once, after all content; usage
(where it was asked for) is the last chunk, without choices.
Must not know: where events come from, how they are sent on.
"""

from __future__ import annotations

import json

from service.callers import tier_of
from service.errors import ApiError
from service.protocol import Event, Job, TokenData
from service.schemas import Description, Usage
from service.schemas_chat import (
    AssistantMessage,
    ChatChunk,
    ChatCompletion,
    Choice,
    ChunkChoice,
    Delta,
    FinishReason,
)

DONE = b"data: [DONE]\n\n"
STREAM_EXAMPLE = (
    'data: {"id":"chatcmpl-…","object":"chat.completion.chunk","created":1767225600,"model":"…",'
    '"choices":[{"index":0,"delta":{"content":"A large"},"logprobs":null,"finish_reason":null}]}\n\n'
    "data: [DONE]\n\n"
)


class ChatWords:
    def __init__(self, job: Job, *, include_usage: bool) -> None:
        self._job = job
        self._include_usage = include_usage
        self._begun = False

    def whole(self, description: Description) -> str:
        return self.completion(description).model_dump_json()

    def completion(self, description: Description) -> ChatCompletion:
        choice = Choice(
            message=AssistantMessage(content=description.text), finish_reason=finish_reason(description)
        )
        return ChatCompletion(
            id=description.id,
            created=description.created,
            model=description.model,
            choices=[choice],
            usage=description.usage,
            service_tier=tier_of(self._job.priority),
        )

    def token(self, event: Event) -> bytes:
        text = TokenData.model_validate(event.data).text
        return self._opening() + (self._chunk(Delta(content=text)) if text else b"")

    def done(self, description: Description, event_id: str) -> bytes:  # noqa: ARG002 (chunks have no ids)
        end = self._opening() + self._chunk(Delta(), finish_reason(description))
        usage = self._encode([], description.usage) if self._include_usage else b""
        return end + usage + DONE

    def error(self, error: ApiError, event_id: str) -> bytes:  # noqa: ARG002 (chunks have no ids)
        return f"data: {json.dumps(error.body())}\n\n".encode() + DONE

    def _opening(self) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        return self._chunk(Delta(role="assistant", content=""))

    def _chunk(self, delta: Delta, reason: FinishReason | None = None) -> bytes:
        return self._encode([ChunkChoice(delta=delta, finish_reason=reason)])

    def _encode(self, choices: list[ChunkChoice], usage: Usage | None = None) -> bytes:
        job = self._job
        chunk = ChatChunk(
            id=job.id, created=int(job.created_at), model=job.model, choices=choices, usage=usage
        )
        body = chunk.model_dump(mode="json", exclude=None if self._include_usage else {"usage"})
        for choice, seen in zip(body["choices"], choices, strict=True):
            choice["delta"] = seen.delta.model_dump(exclude_unset=True)
        return f"data: {json.dumps(body)}\n\n".encode()


def finish_reason(description: Description) -> FinishReason:
    return "length" if description.finish_reason == "length" else "stop"
