"""Qwen2.5-VL: pictures at their own resolution, window attention in the tower, 3-D rotary positions.

M is the picture's merged patches, a grid of its own shape. Still pictures only; videos are not taken.
Invariant: a picture never has more than max_pixels, so M is bounded by what the card says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from model.adapters.base import Footprint, Pixels, Positions
from model.adapters.hub import HubAdapter, decoder_shape, fixed_options, named_tensors, size_of, to_pil
from model.adapters.loading import Base, check_decoder, load_base, read_config
from model.card import DynamicSize, ImageSpec
from model.checkpoint import CheckpointError
from model.config import EngineConfig
from model.request import RequestError

AXES = 3  # time, row, column


def load(
    directory: Path, *, dtype: torch.dtype, device: torch.device, config: EngineConfig
) -> Qwen25VLAdapter:
    fixed_options(config, "qwen2_5_vl", "image_fit")
    vlm_config = read_config(Qwen2_5_VLConfig, directory)
    text = vlm_config.text_config
    check_decoder(text, directory)
    shape = decoder_shape(text, qkv_bias=True, out_bias=False)
    base = load_base(Qwen2_5_VLForConditionalGeneration, vlm_config, shape, directory, dtype, device)
    return Qwen25VLAdapter(base, directory, config.max_image_tokens)


class Qwen25VLAdapter(HubAdapter):
    family = "qwen2_5_vl"
    whole_processor = False  # transformers' processor of this family wants torchvision, for its videos

    def __init__(self, base: Base, directory: Path, max_image_tokens: int | None) -> None:
        super().__init__(base, directory)
        vision = base.config.vision_config
        self._merge = vision.spatial_merge_size
        self._patch_values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        self._axis_of_pair = [
            index % AXES for index, pairs in enumerate(self._rotary.mrope_section) for _ in range(pairs)
        ]
        if len(self._axis_of_pair) != self.shape.head_dim // 2:
            raise CheckpointError(f"{directory}: mrope_section does not cover head_dim {self.shape.head_dim}")
        self._size = self._size_limits(vision.patch_size * self._merge, max_image_tokens)
        side = math.isqrt(self._size.max_pixels) // self._size.multiple
        self.grid, self.image_tokens = (side, side), side * side
        pixels = side * self._size.multiple
        self.image = ImageSpec(pixels, pixels, "crop", dynamic=self._size)

    def _size_limits(self, factor: int, max_image_tokens: int | None) -> DynamicSize:
        processor = self.words.image_processor
        size = Qwen2VLImageProcessorPil.size if processor is None else processor.size
        most = size["longest_edge"]
        if max_image_tokens is not None:
            most = min(most, max_image_tokens * factor**2)
        return DynamicSize(factor, min(size["shortest_edge"], most), max(most, factor**2))

    def take_pixels(self, pixel_values: Any) -> Pixels:
        """`pixel_values` [patches of all, values of a patch] and `image_grid_thw` [n, 3]."""
        values, grids = named_tensors(pixel_values, "pixel_values", "image_grid_thw")
        sizes = tuple(tuple(map(int, grid)) for grid in grids.reshape(-1, AXES).tolist())
        good = grids.dim() == 2 and all(
            time == 1 and min(rows, columns) > 0 and rows % self._merge == columns % self._merge == 0
            for time, rows, columns in sizes
        )
        if not good or list(values.shape) != [sum(map(math.prod, sizes)), self._patch_values]:
            raise RequestError(
                f"pixel_values has shape {list(values.shape)} for image_grid_thw {grids.tolist()}, expected "
                f"[patches, {self._patch_values}] and a row [1, rows, columns] an image, rows and columns "
                f"multiples of {self._merge}",
                param="pixel_values",
            )
        most = self._size.max_pixels // self._size.multiple**2
        for _, rows, columns in sizes:
            tokens = rows * columns // self._merge**2
            if tokens > most:
                told = (
                    f"a picture of {rows} x {columns} patches has {tokens} tokens, at most {most} are taken"
                )
                raise RequestError(told, param="pixel_values")
        return Pixels(values, sizes)

    def footprints(self, images: Sequence[Any] | Pixels) -> list[Footprint]:
        if isinstance(images, Pixels):
            grids = [(rows // self._merge, columns // self._merge) for _, rows, columns in images.sizes]
        else:
            grids = [self._grid(*size_of(image)) for image in images]
        return [Footprint(rows * columns, (rows, columns)) for rows, columns in grids]

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        size = self._size
        try:
            height, width = smart_resize(height, width, size.multiple, size.min_pixels, size.max_pixels)
        except ValueError as error:  # its limit to how long and thin a picture may be
            raise RequestError(f"an image of {height} x {width}: {error}", param="images") from error
        if height * width > size.max_pixels:
            raise RequestError(
                f"an image is too long and thin: its shape does not fit into {size.max_pixels} pixels",
                param="images",
            )
        return height // size.multiple, width // size.multiple

    def prepare_images(self, images: Sequence[Any]) -> Pixels:
        size = {"shortest_edge": self._size.min_pixels, "longest_edge": self._size.max_pixels}
        return self.take_pixels(self.words.processed([to_pil(image) for image in images], size=size))

    def encode_images(self, pixels: Pixels) -> Tensor:
        values, grids = self._on_device(pixels.values), torch.tensor(pixels.sizes)
        output = self._vision.get_image_features(
            pixel_values=values, image_grid_thw=grids.to(values.device), return_dict=True
        )
        return torch.cat(list(output.pooler_output))

    def positions(self, token_ids: Sequence[int], footprints: Sequence[Footprint], /) -> Positions | None:
        """A text token stands at one position on all axes, an image's at its row and column behind it.

        What follows an image goes on behind its longer side (Qwen2-VL, arXiv 2409.12191, section 2.1).
        """
        if not footprints:
            return None
        if token_ids[-1] == self.image_token_id:
            # The engine counts on from the last prompt token, and an image's last patch is no place for that.
            raise RequestError(
                f"a prompt of a {self.family} checkpoint must not end in an image", param="prompt_token_ids"
            )
        length, grids = len(token_ids), iter(footprints)
        axes = torch.empty(AXES, length, dtype=torch.long)
        at = position = 0
        while at < length:
            if token_ids[at] != self.image_token_id:
                axes[:, at] = position
                at, position = at + 1, position + 1
                continue
            rows, columns = self._next_grid(token_ids, at, next(grids, None))
            within = torch.arange(rows * columns)
            end = at + rows * columns
            axes[:, at:end] = position
            axes[1, at:end] += within // columns
            axes[2, at:end] += within % columns
            at, position = end, position + max(rows, columns)
        return Positions(pairs=axes[self._axis_of_pair].t().contiguous(), shift=position - length)

    def _next_grid(self, token_ids: Sequence[int], at: int, footprint: Footprint | None) -> tuple[int, int]:
        grid = None if footprint is None else footprint.grid
        if grid is None or set(token_ids[at : at + grid[0] * grid[1]]) != {self.image_token_id}:
            raise RequestError(
                f"the image placeholders from token {at} on are not one run an image, as long as its tokens",
                param="prompt_token_ids",
            )
        return grid
