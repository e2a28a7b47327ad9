"""One accepted request, as the gateway resolved it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from service.protocol.message import Message, VersionedMessage

Priority = Literal["interactive", "batch"]


class ImageRef(Message):
    """One prepared picture: raw RGB uint8, row-major, height * width * 3 bytes, at the card's image spec.

    sha256: its name in the queue, see `picture_name`. Older gateways write the bare digest: such a picture
    may be several jobs', and goes when its time is up.
    """

    sha256: str
    height: int
    width: int


def picture_name(job_id: str, digest: str) -> str:
    """Under its job's name a picture is that job's alone, and goes when the job ends."""
    return f"{job_id}:{digest}"


class JobParams(Message):
    """Already resolved by the gateway: `retained_tokens` is R-bar (None: the worker's default).

    retained_share: R-bar as a share of M instead, for a card whose M differs from image to image.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    retained_tokens: int | None = None
    retained_share: float | None = None
    speculation: bool = True
    token_map: bool = False


class Turn(Message):
    """Same fields and meaning as `model.request.Turn`."""

    role: Literal["user", "assistant"]
    text: str
    images: int = 0


class Job(VersionedMessage):
    """One accepted request. Immutable: which attempt runs it is the broker's knowledge, see `Lease`.

    created_at, deadline_at: unix seconds by the gateway's clock; only their difference means something to
    others. request_id: the HTTP request's, for logs only. model: whose card
    it was checked against. owner: the name of the API key that made it, which alone may see it; empty where
    no keys are used. predicted_tokens: what it counts in admission and between owners, see `prediction`.
    traceparent: of the gateway's span (W3C Trace Context), empty where none is kept. history: the turns
    before the prompt, only where the card takes them (a worker older than the field would leave them out).
    """

    id: str
    created_at: float
    prompt: str
    images: tuple[ImageRef, ...] = ()
    params: JobParams = Field(default_factory=JobParams)
    deadline_at: float | None = None
    request_id: str = ""
    model: str = ""
    owner: str = ""
    priority: Priority = "interactive"
    predicted_tokens: int = 1
    traceparent: str = ""
    history: tuple[Turn, ...] = ()
