"""A `/v1/describe` body, JSON or multipart, becomes checked fields and the bytes of its pictures.

Invariant: both content types accept the same fields and refuse the same mistakes with the same errors.
Must not know: the model card, what is in a picture, the queue.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import anyio.to_thread
from fastapi import Request

from service.errors import BadField, BadRequest, UnsupportedMedia
from service.form import Part, read_form
from service.image_url import ImageUrl, is_url
from service.protocol import Turn
from service.schemas import MAX_IMAGES, DescribeBody, DescribeFields

MAX_FORM_FIELDS = 64
LIST_FIELDS = frozenset({"stop", "include"})

Picture = bytes | ImageUrl


@dataclass(frozen=True)
class Submission:
    """images: as they came, or whence they are to be fetched. model: the served name asked for, None for
    whichever there is. kind: begins the job's id. history: earlier turns, whose images come first.
    renamed: as `errors.renaming` takes it, where the client knows the fields by other names.
    """

    fields: DescribeFields
    images: Sequence[Picture]
    model: str | None = None
    kind: str = "desc"
    history: tuple[Turn, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)

    @property
    def texts(self) -> str:
        return "\n".join([*(turn.text for turn in self.history), self.fields.prompt])


async def read_submission(request: Request) -> Submission:
    if content_type(request) == "multipart/form-data":
        form = await read_form(request, max_files=MAX_IMAGES, max_fields=MAX_FORM_FIELDS)
        return submission_of_form(form)
    body = await json_body(request, "application/json or multipart/form-data")
    # Megabytes of base64 would hold the event loop.
    return await anyio.to_thread.run_sync(submission_of_json, body)


def content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def json_body(request: Request, read: str = "application/json") -> bytes:
    """read: what the route reads, for the error messages."""
    body = await request.body()
    if not body:
        raise BadRequest(f"The body is empty; send {read}.", code="empty_body")
    given = content_type(request)
    if given != "application/json":
        raise UnsupportedMedia(f"Content-Type '{given[:80]}' is not read; send {read}.")
    return body


def submission_of_json(body: bytes) -> Submission:
    fields = DescribeBody.model_validate_json(body, strict=True)
    return Submission(fields, [picture_of(text) for text in fields.image])


def picture_of(text: str, param: str = "image") -> Picture:
    """Standard base64, bare or in a data URL; or a URL, which is not fetched here."""
    if is_url(text):
        return ImageUrl(text, param)
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise BadField(param, f"'{param}' is a data URL, but not of the form data:<type>;base64,<data>.")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as broken:
        raise BadField(param, f"'{param}' is not valid base64.", code="bad_base64") from broken


def submission_of_form(form: Sequence[Part]) -> Submission:
    texts: dict[str, str | list[str]] = {}
    images: list[Picture] = []
    for part in form:
        if part.name == "image":
            images.append(_file_bytes(part))
        elif part.filename is not None:
            raise _misplaced_file(part.name)
        else:
            # A browser sends every line break of a form's text as CRLF (WHATWG HTML, multipart/form-data).
            _put(texts, part.name, part.text.replace("\r\n", "\n"))
    fields = DescribeFields.model_validate(texts)
    if not images:
        raise BadField("image", "'image' is required.", code="missing_field")
    return Submission(fields, images)


def _file_bytes(part: Part) -> bytes:
    if part.filename is None:
        raise BadField("image", "'image' must be sent as a file (with a filename) in multipart/form-data.")
    return part.data


def _misplaced_file(name: str) -> BadField:
    if name in DescribeFields.model_fields:
        return BadField(name, f"'{name}' must be text, not a file.")
    return BadField(name, f"Unknown field: '{name}'. Files are sent as 'image'.", code="unknown_field")


def _put(texts: dict[str, str | list[str]], name: str, value: str) -> None:
    if name not in LIST_FIELDS:
        if name in texts:
            raise BadField(name, f"'{name}' is given more than once.")
        texts[name] = value
        return
    held = texts.setdefault(name, [])
    if isinstance(held, list):
        held.append(value)
