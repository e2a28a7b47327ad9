"""The model card a worker announces: all that a gateway must know of a model to check and prepare a request.

Plain data without torch, so that it travels in a heartbeat as JSON.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Fit = Literal["stretch", "crop", "pad"]


@dataclass(frozen=True)
class DynamicSize:
    """A picture keeps its shape: each side a multiple of `multiple`, in all min_pixels to max_pixels."""

    multiple: int
    min_pixels: int
    max_pixels: int


@dataclass(frozen=True)
class ImageSpec:
    """The picture the vision tower wants.

    stretch: resized to width x height. crop: the shorter side resized to fit, then centre-cropped.
    pad: padded to a square with `pad_color`, then resized. All with bicubic resampling, as the
    checkpoint's own image processor does.
    dynamic: set where the tower takes pictures of any size; height, width and fit are then what a reader
    that does not know the field may send: a picture that the tower takes as well.
    """

    height: int
    width: int
    fit: Fit = "crop"
    pad_color: tuple[int, int, int] = (122, 116, 104)
    dynamic: DynamicSize | None = None

    @classmethod
    def from_dict(cls, image: dict[str, Any]) -> ImageSpec:
        """As `ModelCard.from_dict`."""
        dynamic = image.get("dynamic")
        size = dynamic and DynamicSize(dynamic["multiple"], dynamic["min_pixels"], dynamic["max_pixels"])
        return cls(image["height"], image["width"], image["fit"], tuple(image["pad_color"]), size)


@dataclass(frozen=True)
class ModelCard:
    """model_id: the served name. image_tokens: M of one image. grid: its [rows, columns].

    Where `image.dynamic` is set M differs from image to image: the card then speaks of a picture of
    image.height x image.width, and a quality tier stands for the same share of another picture's M.

    quality: tier name -> R-bar. retained_min..retained_max is the legal range of R-bar with pruning on;
    `image_tokens` itself is legal too and means no pruning. default_retained: R-bar where none is asked.
    takes_turns: earlier turns of a chat may stand before the prompt.
    """

    model_id: str
    family: str
    image: ImageSpec
    image_tokens: int
    grid: tuple[int, int]
    layers: int
    max_images: int
    max_model_len: int
    quality: dict[str, int] = field(default_factory=dict)
    retained_min: int = 0
    retained_max: int = 0
    default_retained: int = 0
    speculation: bool = False
    takes_turns: bool = False

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModelCard:
        """Reads a card; fields that a newer worker added are ignored (the two are rolled separately)."""
        known = {name: data[name] for name in cls.__dataclass_fields__ if name in data and name != "image"}
        known["grid"] = tuple(data["grid"])
        return cls(image=ImageSpec.from_dict(data["image"]), **known)
