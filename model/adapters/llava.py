"""LLaVA 1.5: pictures of one size, a CLIP (or like) tower and a projector, each picture M tokens.

Invariant: what the tower gets has the shape that M was computed from.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration

from model.adapters.base import Footprint, Pixels
from model.adapters.hub import HubAdapter, decoder_shape, fixed_options, real_tensor, to_pil
from model.adapters.loading import Base, check_decoder, check_features, load_base, read_config
from model.card import ImageSpec
from model.checkpoint import CheckpointError
from model.config import EngineConfig, ImageFit
from model.pictures import pad_to_square, tokens_of
from model.request import RequestError


def load(directory: Path, *, dtype: torch.dtype, device: torch.device, config: EngineConfig) -> LlavaAdapter:
    fixed_options(config, "llava", "max_image_tokens")
    vlm_config = read_config(LlavaConfig, directory)
    text = vlm_config.text_config
    if text.model_type != "llama":
        raise CheckpointError(f"{directory}: text model {text.model_type!r} is not supported; known: llama")
    check_decoder(text, directory)
    check_features(vlm_config, directory)
    shape = decoder_shape(text, qkv_bias=text.attention_bias, out_bias=text.attention_bias)
    base = load_base(LlavaForConditionalGeneration, vlm_config, shape, directory, dtype, device)
    return LlavaAdapter(base, directory, config.image_fit)


class LlavaAdapter(HubAdapter):
    family = "llava"

    def __init__(self, base: Base, directory: Path, image_fit: ImageFit | None) -> None:
        super().__init__(base, directory)
        vision = base.config.vision_config
        self.image_tokens, self.grid = tokens_of(base.config)
        self.image_shape = (getattr(vision, "num_channels", 3), vision.image_size, vision.image_size)
        self.image = self._image_spec(vision.image_size, image_fit)

    def _image_spec(self, side: int, image_fit: ImageFit | None) -> ImageSpec:
        if image_fit == "pad":
            return ImageSpec(side, side, "pad")
        processor = self.words.image_processor
        crop = processor is None or getattr(processor, "do_center_crop", False)
        return ImageSpec(side, side, "crop" if crop else "stretch")

    def take_pixels(self, pixel_values: Any) -> Pixels:
        """Tensor [n, 3, height, width]."""
        shape, wanted = list(getattr(pixel_values, "shape", ())), list(self.image_shape)
        if len(shape) != 4 or shape[1:] != wanted:
            raise RequestError(
                f"pixel_values has shape {shape}, expected [n, *{wanted}]", param="pixel_values"
            )
        return self._pixels(real_tensor(pixel_values, "pixel_values"))

    def _pixels(self, values: Tensor) -> Pixels:
        return Pixels(values, sizes=(self.image_shape[1:],) * values.shape[0])

    def footprints(self, images: Sequence[Any] | Pixels) -> list[Footprint]:
        count = len(images.sizes) if isinstance(images, Pixels) else len(images)
        whole = self.grid[0] * self.grid[1] == self.image_tokens  # with [CLS] among them they are no grid
        return [Footprint(self.image_tokens, self.grid if whole else None)] * count

    def prepare_images(self, images: Sequence[Any]) -> Pixels:
        pictures = [to_pil(image) for image in images]
        if self.image.fit == "pad":
            pictures = [pad_to_square(picture, self.image.pad_color) for picture in pictures]
        return self._pixels(self.words.processed(pictures)["pixel_values"])

    def encode_images(self, pixels: Pixels) -> Tensor:
        values = self._on_device(pixels.values)
        features = self._vision.get_image_features(pixel_values=values, return_dict=True).pooler_output
        return torch.cat(list(features))

    def saliency(self, pixels: Pixels) -> Tensor:
        """[sum of M]: what [CLS] attends to in the tower's last layer, mean over heads."""
        tower = self._vision.vision_tower
        if self.image_tokens != self.grid[0] * self.grid[1] or tower.config.model_type != "clip_vision_model":
            raise ValueError("saliency needs a CLIP tower whose [CLS] is no visual token")
        return _cls_attention(tower, self._on_device(pixels.values)).flatten()


def _cls_attention(tower: torch.nn.Module, pixel_values: Tensor) -> Tensor:
    """[n, 3, H, W] -> [n, patches]."""
    hidden = tower(pixel_values, output_hidden_states=True).hidden_states[-2]
    layer = tower.encoder.layers[-1]
    attention, normed = layer.self_attn, layer.layer_norm1(hidden)
    query, key = (
        project(part).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        for project, part in ((attention.q_proj, normed[:, :1]), (attention.k_proj, normed))
    )
    probabilities = (query @ key.transpose(2, 3) * attention.scale).float().softmax(-1)
    return probabilities.mean(1)[:, 0, 1:]
