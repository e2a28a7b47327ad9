"""What all families share: a base from a Hugging Face directory, its words, and plain rotary positions.

A family adds its pictures: how they are measured, prepared and encoded. Knows nothing of the twig, of
pruning or of the engine's state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from model.adapters.base import Footprint, Positions
from model.adapters.loading import Base
from model.checkpoint import model_id
from model.config import EngineConfig
from model.decoder import DecoderShape, rotary_table
from model.dtypes import seeing_dtype
from model.request import RequestError, Turn
from model.words import Words


class HubAdapter:
    """The shared part of `model.adapters.base.Adapter`."""

    family: str
    whole_processor = True

    def __init__(self, base: Base, directory: Path) -> None:
        config = base.config
        self.model_id = model_id(directory)
        self.image_token_id: int = config.image_token_id
        self.max_model_len: int = config.text_config.max_position_embeddings
        self.shape, self.layers, self.head = base.shape, base.layers, base.head
        self.eos_token_ids = base.eos_token_ids
        self.words = Words(directory, self.image_token_id, whole=self.whole_processor)
        self.decode = self.words.decode
        self.embedding, self._rotary, self._vision = base.embedding, base.rotary, base.vlm.model
        self._tower_dtype = seeing_dtype(base.embedding.dtype, base.embedding.device)
        for name, part in self._vision.named_children():
            if name != "language_model":
                part.to(self._tower_dtype)

    def rope(self, positions: int) -> Tensor:
        device = self.embedding.device
        like = torch.empty(0, dtype=torch.float32, device=device)
        cos, sin = self._rotary(like, torch.arange(positions, device=device)[None])
        return rotary_table(cos[0], sin[0])

    def positions(self, _token_ids: Sequence[int], _footprints: Sequence[Footprint], /) -> Positions | None:
        return None

    @property
    def takes_turns(self) -> bool:
        return self.words.takes_turns

    def prompt_token_ids(self, prompt: str, images: int, history: Sequence[Turn] = ()) -> list[int]:
        return self.words.prompt_token_ids(prompt, images, history)

    def _on_device(self, values: Tensor) -> Tensor:
        return values.to(self.embedding.device, self._tower_dtype)


def decoder_shape(text: Any, *, qkv_bias: bool, out_bias: bool) -> DecoderShape:
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return DecoderShape(
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads,
        head_dim=head_dim,
        norm_eps=text.rms_norm_eps,
        vocabulary=text.vocab_size,
        qkv_bias=qkv_bias,
        out_bias=out_bias,
    )


def fixed_options(config: EngineConfig, family: str, *names: str) -> None:
    """Refuses options that this family cannot follow."""
    for name in names:
        if getattr(config, name) is not None:
            raise ValueError(f"{name} is no option of {family} checkpoints")


def named_tensors(given: Any, *names: str) -> list[Tensor]:
    """The tensors of a `Request.pixel_values` that is a mapping."""
    if not isinstance(given, Mapping) or set(given) != set(names):
        found = sorted(given) if isinstance(given, Mapping) else type(given).__name__
        raise RequestError(
            f"pixel_values must map {' and '.join(names)} to tensors, not {found}", param="pixel_values"
        )
    return [real_tensor(given[name], name) for name in names]


def real_tensor(values: Any, name: str) -> Tensor:
    """Of a tensor, an array or a list of a `Request.pixel_values`."""
    try:
        tensor = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise RequestError(f"{name} cannot be read: {error}", param="pixel_values") from error
    if tensor.is_complex():
        raise RequestError(f"{name} must hold real numbers", param="pixel_values")
    return tensor


def to_pil(image: Any) -> Image.Image:
    return (image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))).convert("RGB")


def size_of(image: Any) -> tuple[int, int]:
    """(height, width) of a PIL image or an array [H, W, 3]."""
    if isinstance(image, Image.Image):
        return image.height, image.width
    height, width = image.shape[:2]
    return int(height), int(width)
