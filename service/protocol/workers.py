"""What a worker tells of itself: its model's card, its slots, its speed."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from service.protocol.message import Message, VersionedMessage


class DynamicSize(Message):
    """Same fields and meaning as `model.card.DynamicSize`."""

    multiple: int = Field(ge=1)
    min_pixels: int = Field(ge=1)
    max_pixels: int = Field(ge=1)


class ImageSpec(Message):
    """Same fields and meaning as `model.card.ImageSpec`."""

    height: int
    width: int
    fit: Literal["stretch", "crop", "pad"] = "crop"
    pad_color: tuple[int, int, int] = (122, 116, 104)
    dynamic: DynamicSize | None = None


class ModelCard(Message):
    """Same fields and meaning as `model.card.ModelCard`."""

    model_id: str
    family: str
    image: ImageSpec
    image_tokens: int
    grid: tuple[int, int]
    layers: int
    max_images: int
    max_model_len: int
    quality: dict[str, int] = Field(default_factory=dict)
    retained_min: int = 0
    retained_max: int = 0
    default_retained: int = 0
    speculation: bool = False
    takes_turns: bool = False


class WorkerInfo(VersionedMessage):
    """A heartbeat. tokens_per_s: predicted tokens worked off a busy second (`throughput`), 0 if unknown."""

    worker_id: str
    started_at: float
    card: ModelCard
    max_slots: int
    free_slots: int
    draining: bool = False
    tokens_per_s: float = 0.0
