"""What the engine needs of a model family, and nothing else: the seam between families and the engine.

Invariant: the engine sees this protocol only; a family's names and layouts end here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from model.card import ImageSpec
from model.decoder import DecoderLayer, DecoderShape, Head
from model.request import Turn


@dataclass(frozen=True)
class Pixels:
    """Prepared pictures. values: as the family's tower takes them, those of all pictures in one tensor.

    sizes: one entry a picture, whatever of its size the tower and M depend on.
    """

    values: Tensor
    sizes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Footprint:
    """What one picture takes of a prompt: its M, and [rows, columns] where its tokens are one grid."""

    tokens: int
    grid: tuple[int, int] | None


@dataclass(frozen=True)
class Positions:
    """Rotary positions of a prompt that are not 0..P-1.

    pairs: int64 [P, head_dim / 2], for each token the position of each rotary pair, none above P.
    shift: what is added to the count of tokens so far to get the position of a token of the answer.
    """

    pairs: Tensor
    shift: int


class Adapter(Protocol):
    """A loaded base model.

    image_tokens, grid: M of one image and its [rows, columns]; where M differs from image to image
    (`image.dynamic`), those of a picture of image.height x image.width.
    embedding: [vocabulary, hidden]. rope: how many positions -> complex64 [positions, 1, head_dim / 2].
    decode: output ids -> text without special tokens, None where the checkpoint has no tokenizer.
    """

    family: str
    model_id: str
    shape: DecoderShape
    embedding: Tensor
    layers: list[DecoderLayer]
    head: Head
    image: ImageSpec
    image_tokens: int
    grid: tuple[int, int]
    image_token_id: int
    eos_token_ids: frozenset[int]
    max_model_len: int
    decode: Callable[[Sequence[int]], str] | None

    def rope(self, positions: int) -> Tensor: ...

    def take_pixels(self, pixel_values: Any) -> Pixels:
        """`Request.pixel_values`, checked; RequestError where they do not fit the tower."""
        ...

    def footprints(self, images: Sequence[Any] | Pixels) -> list[Footprint]:
        """Of each picture (PIL or uint8 [H, W, 3]) or prepared one; RequestError where it cannot be taken."""
        ...

    def prepare_images(self, images: Sequence[Any]) -> Pixels:
        """Pictures (PIL or uint8 [H, W, 3]) through the checkpoint's processor; RequestError if it cannot."""
        ...

    def encode_images(self, pixels: Pixels) -> Tensor:
        """Visual features [sum of M, hidden], picture after picture."""
        ...

    def positions(self, token_ids: Sequence[int], footprints: Sequence[Footprint], /) -> Positions | None:
        """Of an expanded prompt; None where they are 0..P-1."""
        ...

    @property
    def takes_turns(self) -> bool:
        """Has a chat template, so that `history` may stand before a prompt."""
        ...

    def prompt_token_ids(self, prompt: str, images: int, history: Sequence[Turn] = ()) -> list[int]:
        """The chat template around a prompt with one placeholder an image; RequestError if it cannot."""
        ...
