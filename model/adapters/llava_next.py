"""LLaVA-NeXT: a picture in tiles at the best of a few resolutions, its padding cut away, a newline a row.

M differs from picture to picture, with its size; transformers' own rules say how.
Invariant: M is computed by the same functions that transformers cuts the tower's features with.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration
from transformers.models.llava_next.modeling_llava_next import (
    get_anyres_image_grid_shape,
    image_size_to_num_patches,
    unpad_image,
)

from model.adapters.base import Footprint, Pixels
from model.adapters.hub import HubAdapter, decoder_shape, fixed_options, named_tensors, size_of, to_pil
from model.adapters.loading import Base, check_decoder, check_features, load_base, read_config
from model.card import DynamicSize, ImageSpec
from model.checkpoint import CheckpointError
from model.config import EngineConfig
from model.request import RequestError

DECODERS = ("llama", "mistral")
# The gateway shrinks what has more than this many times the pixels of the largest resolution; such a
# picture is resized twice, here and when its tiles are cut. More would send megabytes for little.
OVERSAMPLING = 4


def load(
    directory: Path, *, dtype: torch.dtype, device: torch.device, config: EngineConfig
) -> LlavaNextAdapter:
    fixed_options(config, "llava_next", "image_fit", "max_image_tokens")
    vlm_config = read_config(LlavaNextConfig, directory)
    text = vlm_config.text_config
    if text.model_type not in DECODERS:
        known = ", ".join(DECODERS)
        raise CheckpointError(f"{directory}: text model {text.model_type!r} is not supported; known: {known}")
    check_decoder(text, directory)
    check_features(vlm_config, directory)
    bias = getattr(text, "attention_bias", False)
    shape = decoder_shape(text, qkv_bias=bias, out_bias=bias)
    base = load_base(LlavaNextForConditionalGeneration, vlm_config, shape, directory, dtype, device)
    return LlavaNextAdapter(base, directory)


class LlavaNextAdapter(HubAdapter):
    family = "llava_next"

    def __init__(self, base: Base, directory: Path) -> None:
        super().__init__(base, directory)
        vision = base.config.vision_config
        self._tile = vision.image_size
        self._side = vision.image_size // vision.patch_size
        self._resolutions: list[list[int]] = [list(pair) for pair in base.config.image_grid_pinpoints]
        self._check_tower(base.config, directory)
        self.grid = (self._side, self._side)
        height, width = max(self._resolutions, key=lambda pair: self._tokens(*pair))
        self.image_tokens = self._tokens(height, width)
        largest = max(height * width for height, width in self._resolutions)
        dynamic = DynamicSize(multiple=1, min_pixels=1, max_pixels=OVERSAMPLING * largest)
        self.image = ImageSpec(height, width, "crop", dynamic=dynamic)

    def _check_tower(self, config: Any, directory: Path) -> None:
        class_token = config.vision_config.model_type == "clip_vision_model"
        if class_token != (config.vision_feature_select_strategy == "default"):
            raise CheckpointError(
                f"{directory}: vision_feature_select_strategy {config.vision_feature_select_strategy!r} "
                f"does not leave a {config.vision_config.model_type} tower's patches alone"
            )

    def _tokens(self, height: int, width: int) -> int:
        """M of a picture: one tile of the whole of it, and its own rows, each with a newline."""
        tiles = get_anyres_image_grid_shape((height, width), self._resolutions, self._tile)
        patches = torch.empty(0, tiles[0] * self._side, tiles[1] * self._side)
        rows, columns = unpad_image(patches, (height, width)).shape[1:]
        return self._side**2 + rows * (columns + 1)

    def take_pixels(self, pixel_values: Any) -> Pixels:
        """`pixel_values` [n, tiles, 3, height, width] and `image_sizes` [n, 2]."""
        values, sizes = named_tensors(pixel_values, "pixel_values", "image_sizes")
        wanted = [3, self._tile, self._tile]
        if values.dim() != 5 or list(values.shape[2:]) != wanted or sizes.shape != (values.shape[0], 2):
            raise RequestError(
                f"pixel_values has shape {list(values.shape)} and image_sizes {list(sizes.shape)}, "
                f"expected [n, tiles, {', '.join(map(str, wanted))}] and [n, 2]",
                param="pixel_values",
            )
        pixels = Pixels(values, tuple((int(height), int(width)) for height, width in sizes.tolist()))
        for height, width in pixels.sizes:
            self._check_tiles(height, width, values.shape[1])
        return pixels

    def _check_tiles(self, height: int, width: int, given: int) -> None:
        if min(height, width) < 1:
            raise RequestError(f"image_sizes holds {height} x {width}", param="pixel_values")
        wanted = image_size_to_num_patches((height, width), self._resolutions, self._tile)
        if given < wanted:
            raise RequestError(
                f"a picture of {height} x {width} has {wanted} tiles, {given} are given",
                param="pixel_values",
            )

    def footprints(self, images: Sequence[Any] | Pixels) -> list[Footprint]:
        sizes = images.sizes if isinstance(images, Pixels) else [size_of(image) for image in images]
        return [Footprint(self._tokens(height, width), grid=None) for height, width in sizes]

    def prepare_images(self, images: Sequence[Any]) -> Pixels:
        return self.take_pixels(self.words.processed([to_pil(image) for image in images]))

    def encode_images(self, pixels: Pixels) -> Tensor:
        values, sizes = self._on_device(pixels.values), torch.tensor(pixels.sizes)
        output = self._vision.get_image_features(pixel_values=values, image_sizes=sizes, return_dict=True)
        return torch.cat(list(output.pooler_output))
