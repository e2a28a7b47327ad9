"""A chat becomes the submission that `/v1/describe` would have made, with the turns before its prompt.

Invariant: a chat that cannot be put so without changing its meaning is refused. Two things
are moved: pictures stand before the text, and a system message stands before the user's own text.
Must not know: the model card, the queue, how the answer is worded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import anyio.to_thread
from fastapi import Request

from service.errors import BadField
from service.intake import Picture, Submission, json_body, picture_of
from service.protocol import Turn
from service.schemas import DEFAULT_PROMPT, DescribeFields, GenerationFields
from service.schemas_chat import DEFAULT_MODEL, ChatBody, ChatMessage, TextPart

KIND = "chatcmpl"
SYSTEM_ROLES = ("system", "developer")
# Ours (the worker says `images`), all made of the client's messages.
FROM_MESSAGES = ("image", "images", "prompt", "history")


@dataclass(frozen=True)
class Chat:
    submission: Submission
    include_usage: bool


async def read_chat(request: Request) -> Chat:
    body = await json_body(request)
    return await anyio.to_thread.run_sync(chat_of_json, body)  # megabytes of base64


def chat_of_json(raw: bytes) -> Chat:
    body = ChatBody.model_validate_json(raw, strict=True)
    turns, images = _turns(body.messages)
    *history, last = turns
    model = None if body.model == DEFAULT_MODEL else body.model
    fields = _fields(body, last.text or DEFAULT_PROMPT)
    length_field = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    renamed = dict.fromkeys(FROM_MESSAGES, "messages") | {"max_tokens": length_field}
    submission = Submission(fields, images, model, KIND, tuple(history), renamed)
    options = body.stream_options
    if options is not None and not body.stream:
        raise BadField("stream_options", "'stream_options' is for 'stream': true.")
    return Chat(submission, options is not None and bool(options.include_usage))


def _turns(messages: list[ChatMessage]) -> tuple[list[Turn], list[Picture]]:
    """The turns, the system message's text in the first of them; and the pictures of all, in order."""
    system = messages[0] if messages[0].role in SYSTEM_ROLES else None
    first = 0 if system is None else 1
    _check_order([message.role for message in messages[first:]])
    turns: list[Turn] = []
    pictures: list[Picture] = []
    for index, message in enumerate(messages[first:], first):
        own = _images(message, index)
        texts = (_text(system) if index == first else "", _text(message))
        text = "\n\n".join(text for text in texts if text)
        if not text and not own and message.role != "assistant":  # an answer may have been empty
            raise BadField("messages", f"The {message.role} message is empty.")
        role: Literal["user", "assistant"] = "assistant" if message.role == "assistant" else "user"
        turns.append(Turn(role=role, text=text, images=len(own)))
        pictures += own
    if system is not None and not all(isinstance(part, TextPart) for part in system.content):
        raise BadField("messages", "A system message holds text alone.")
    return turns, pictures


def _check_order(roles: list[str]) -> None:
    expected = ["user", "assistant"] * (len(roles) // 2) + ["user"]
    if roles != expected:
        raise BadField(
            "messages",
            "After at most one system message come user and assistant in turn, the user first and last.",
            code="unsupported_value",
        )


def _text(message: ChatMessage | None) -> str:
    parts = [] if message is None else message.content
    return "\n".join(part.text for part in parts if isinstance(part, TextPart))


def _images(message: ChatMessage, index: int) -> list[Picture]:
    images: list[Picture] = []
    for number, part in enumerate(message.content):
        if not isinstance(part, TextPart):
            if message.role == "assistant":
                raise BadField("messages", "An assistant message holds text alone.")
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
