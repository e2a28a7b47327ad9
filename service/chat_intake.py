"""A chat becomes the submission that `/v1/describe` would have made: one prompt and its pictures.

Invariant: a chat that cannot be put into one prompt without changing its meaning is refused. Two things
are moved: pictures stand before the text, and a system message stands before the user's own text.
Must not know: the model card, the queue, how the answer is worded.
"""

from __future__ import annotations

from dataclasses import dataclass

import anyio.to_thread
from fastapi import Request

from service.errors import BadField
from service.intake import Picture, Submission, json_body, picture_of
from service.schemas import DEFAULT_PROMPT, DescribeFields, GenerationFields
from service.schemas_chat import DEFAULT_MODEL, ChatBody, ChatMessage, TextPart

KIND = "chatcmpl"
SYSTEM_ROLES = ("system", "developer")


@dataclass(frozen=True)
class Chat:
    submission: Submission
    include_usage: bool
    length_field: str


async def read_chat(request: Request) -> Chat:
    body = await json_body(request)
    return await anyio.to_thread.run_sync(chat_of_json, body)  # megabytes of base64


def chat_of_json(raw: bytes) -> Chat:
    body = ChatBody.model_validate_json(raw, strict=True)
    system, user, index = _one_turn(body.messages)
    prompt = "\n\n".join(text for text in (_text(system), _text(user)) if text)
    images = _images(user, index)
    if not prompt and not images:
        raise BadField("messages", "The user message is empty.")
    model = None if body.model == DEFAULT_MODEL else body.model
    submission = Submission(_fields(body, prompt or DEFAULT_PROMPT), images, model, KIND)
    options = body.stream_options
    if options is not None and not body.stream:
        raise BadField("stream_options", "'stream_options' is for 'stream': true.")
    length_field = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    return Chat(submission, options is not None and bool(options.include_usage), length_field)


def _one_turn(messages: list[ChatMessage]) -> tuple[ChatMessage | None, ChatMessage, int]:
    """(system message, user message, the user message's index)"""
    system = messages[0] if messages[0].role in SYSTEM_ROLES else None
    index = 0 if system is None else 1
    if [message.role for message in messages[index:]] != ["user"]:
        raise BadField(
            "messages",
            "This version takes one turn: one user message, after at most one system message.",
            code="unsupported_value",
        )
    if system is not None and not all(isinstance(part, TextPart) for part in system.content):
        raise BadField("messages", "A system message holds text alone.")
    return system, messages[index], index


def _text(message: ChatMessage | None) -> str:
    parts = [] if message is None else message.content
    return "\n".join(part.text for part in parts if isinstance(part, TextPart))


def _images(message: ChatMessage, index: int) -> list[Picture]:
    images: list[Picture] = []
    for number, part in enumerate(message.content):
        if not isinstance(part, TextPart):
            param = f"messages[{index}].content[{number}].image_url.url"
            _refuse_bare_base64(part.image_url.url, param)
            images.append(picture_of(part.image_url.url, param))
    return images


def _refuse_bare_base64(url: str, param: str) -> None:
    if ":" not in url[:8]:
        raise BadField(param, f"'{param}' is not a URL; send data:image/<type>;base64,<data>.")


def _fields(body: ChatBody, prompt: str) -> DescribeFields:
    shared = body.model_dump(include=set(GenerationFields.model_fields))
    newer, older = body.max_completion_tokens, body.max_tokens
    if newer is not None and older is not None and newer != older:
        raise BadField("max_tokens", "Give either 'max_completion_tokens' or 'max_tokens', not both.")
    return DescribeFields(**{**shared, "max_tokens": newer or older, "prompt": prompt})
