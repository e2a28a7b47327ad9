"""What the engine needs of a model family, and nothing else: the seam between families and the engine.

Invariant: the engine sees this protocol only; a family's names and layouts end here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor

from model.card import ImageSpec
from model.decoder import DecoderLayer, DecoderShape, Head


class Adapter(Protocol):
    """A loaded base model.

    image_tokens: M of one image; image_shape: [channels, height, width] of its pixel values.
    embed: [n] ids -> [n, hidden]. rope: how many positions -> complex64 [positions, 1, head_dim / 2].
    decode: output ids -> text without special tokens, None where the checkpoint has no tokenizer.
    """

    family: str
    model_id: str
    shape: DecoderShape
    layers: list[DecoderLayer]
    head: Head
    image: ImageSpec
    image_tokens: int
    image_shape: tuple[int, int, int]
    grid: tuple[int, int]
    image_token_id: int
    eos_token_ids: frozenset[int]
    max_model_len: int
    decode: Callable[[Sequence[int]], str] | None

    def embed(self, token_ids: Tensor) -> Tensor: ...

    def rope(self, positions: int) -> Tensor: ...

    def prepare_images(self, images: Sequence[Any]) -> Tensor:
        """Pictures (PIL or uint8 [H, W, 3]) -> pixel values [n, 3, H, W]; RequestError if it cannot."""
        ...

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """[n, 3, H, W] -> visual features [n * M, hidden]."""
        ...

    def prompt_token_ids(self, prompt: str, images: int) -> list[int]:
        """The chat template around a prompt with one placeholder an image; RequestError if it cannot."""
        ...
