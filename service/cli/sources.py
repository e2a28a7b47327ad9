"""Who describes for `twigserve describe`: the engine in this process, or a service elsewhere.

Invariant: both tell the same: token events, then the whole answer in the words of the HTTP API; what is
wrong with one picture alone is PictureRefused. Must not know: how anything is shown.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from service.schemas import Description, TokenEvent
from service.settings import GatewaySettings, WorkerSettings

if TYPE_CHECKING:
    from model.request import Result, StepOutput

RETRIES = 2  # somebody is waiting
# A body refused before its fields were read, perhaps by a proxy: what is large is the picture.
TOO_LARGE = 413

Told = Iterator[TokenEvent | Description]


class PictureRefused(Exception):  # noqa: N818 - the picture's fault, not ours
    """This picture cannot be described; others may."""


@dataclass(frozen=True)
class Asked:
    """The same for every picture; None: the source's default."""

    prompt: str
    max_tokens: int
    quality: str | None
    retained_tokens: int | None
    speculation: bool
    token_map: bool


class Source(Protocol):
    def ask(self, picture: bytes, asked: Asked) -> Told: ...

    def image_spec(self, model: str) -> dict[str, Any]:
        """How the model's tower is shown a picture: the fields of `model.card.ImageSpec`, at least."""

    def close(self) -> None: ...


class LocalSource:
    def __init__(self, settings: WorkerSettings) -> None:
        from service.worker import load_engine

        self._engine = load_engine(settings)
        self._limits = GatewaySettings(allow_anonymous=True)  # for its limits on pictures alone

    def ask(self, picture: bytes, asked: Asked) -> Told:
        from model.request import Request, SamplingParams

        card = self._engine.card
        retained, share = asked.retained_tokens, None
        if asked.quality is not None:
            if asked.quality not in card.quality:
                raise ValueError(f"quality must be one of {', '.join(card.quality)}: this model has no other")
            if card.image.dynamic is None:
                retained = card.quality[asked.quality]
            else:
                share = card.quality[asked.quality] / card.image_tokens
        request = Request(
            prompt=asked.prompt,
            images=[self._prepared(picture)],
            sampling=SamplingParams(max_tokens=asked.max_tokens),
            retained_tokens=retained,
            retained_share=share,
            speculation=asked.speculation and card.speculation,
        )
        self._engine.add(request)
        while self._engine.has_work():
            for output in self._engine.step():
                yield from self._told(output, asked)

    def _prepared(self, picture: bytes) -> Any:
        """As the gateway hands pictures to its workers: the same checks, the same pixels."""
        from service.errors import ApiError
        from service.images import ImageLimits, check_size, decode, fit, sniff
        from service.protocol import ImageSpec

        limits = ImageLimits(self._limits.max_image_bytes, self._limits.max_pixels)
        spec = ImageSpec(**self.image_spec(self._engine.card.model_id))
        try:
            check_size(picture, limits)
            return fit(decode(picture, sniff(picture), limits, spec), spec)
        except ApiError as error:
            raise PictureRefused(error.message) from error

    def _told(self, output: StepOutput, asked: Asked) -> Told:
        if output.token_ids:
            yield TokenEvent(
                text=output.text, token_ids=output.token_ids, drafted=output.drafted, pieces=output.pieces
            )
        if output.result is not None:
            yield self._description(output.result, asked)

    def _description(self, result: Result, asked: Asked) -> Description:
        from service.answers import Answer
        from service.protocol import Event, Job, JobParams
        from service.worker import done_data, token_map_of

        if result.error is not None:
            raise RuntimeError(f"the engine failed: {result.error}")
        card = self._engine.card
        done = done_data(result, card.model_id, batch_size=1)
        if asked.token_map:
            done = done.model_copy(update=token_map_of(result, card.grid))
        job = Job(
            id=f"desc-{uuid.uuid4().hex}",
            created_at=time.time(),
            prompt=asked.prompt,
            params=JobParams(token_map=asked.token_map),
        )
        event = Event(seq=1, attempt=1, type="done", data=done.model_dump(mode="json"))
        return Answer(job, 0.0, replayed=True).description(event)

    def image_spec(self, model: str) -> dict[str, Any]:  # noqa: ARG002 (there is one)
        image: dict[str, Any] = self._engine.card.to_dict()["image"]
        return image

    def close(self) -> None:
        pass


class RemoteSource:
    def __init__(self, url: str, api_key: str | None) -> None:
        from service.client import Client, Retry

        self._client = Client(url, api_key=api_key, retry=Retry(attempts=RETRIES))

    def ask(self, picture: bytes, asked: Asked) -> Told:
        from service.client import Options, Refused

        options = Options(prompt=asked.prompt, max_tokens=asked.max_tokens)
        if asked.quality is not None:
            options["quality"] = asked.quality
        if asked.retained_tokens is not None:
            options["retained_tokens"] = asked.retained_tokens
        if not asked.speculation:
            options["speculation"] = False
        if asked.token_map:
            options["include"] = "token_map"
        try:
            yield from self._client.stream(picture, **options)
        except Refused as error:
            if error.param == "image" or error.status == TOO_LARGE:
                raise PictureRefused(str(error)) from error
            raise

    def image_spec(self, model: str) -> dict[str, Any]:
        cards = [found["card"] for found in self._client.models() if found["id"] == model]
        if not cards:
            raise PictureRefused(f"the service no longer serves {model}: its pictures cannot be drawn")
        image: dict[str, Any] = cards[0]["image"]
        return image

    def close(self) -> None:
        self._client.close()
