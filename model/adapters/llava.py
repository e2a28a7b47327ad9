"""LLaVA: CLIP tower and projector from transformers, the LLaMA decoder's weights moved into our layers.

Invariant: a base that transformers would complete with random weights is refused, naming the tensors.
Knows nothing of the twig, of pruning or of the engine's state.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from model.card import ImageSpec
from model.checkpoint import CheckpointError, model_id
from model.config import ImageFit
from model.decoder import DecoderLayer, DecoderShape, Head, rotary_table
from model.request import RequestError

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
# Their angles depend on the length seen so far, which a table cannot say.
MOVING_ROPE = ("dynamic", "longrope")
PLAIN_TEMPLATE = "USER: {images}{prompt} ASSISTANT:"


def load(
    directory: Path, *, dtype: torch.dtype, device: torch.device, image_fit: ImageFit | None
) -> LlavaAdapter:
    try:
        config = LlavaConfig.from_pretrained(directory)
        _check_supported(config, directory)
        vlm, report = LlavaForConditionalGeneration.from_pretrained(
            directory, config=config, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except CheckpointError:
        raise
    except Exception as error:  # whatever a broken file makes the loader raise, the caller gets one type
        raise CheckpointError(f"cannot load {directory}: {error}") from error
    _check_report(report, directory)
    return LlavaAdapter(vlm.to(device).eval(), directory, image_fit)


def _check_supported(config: LlavaConfig, directory: Path) -> None:
    text = config.text_config
    if text.model_type != "llama":
        raise CheckpointError(f"{directory}: text model {text.model_type!r} is not supported; known: llama")
    if text.hidden_act != "silu" or text.mlp_bias:
        raise CheckpointError(f"{directory}: only a silu MLP without bias is supported")
    if text.rope_parameters["rope_type"] in MOVING_ROPE:
        raise CheckpointError(
            f"{directory}: rope type {text.rope_parameters['rope_type']!r} is not supported"
        )


def _check_report(report: dict[str, Any], directory: Path) -> None:
    for name, found, wanted in sorted(report["mismatched_keys"]):
        raise CheckpointError(f"{directory}: tensor {name} has shape {list(found)}, expected {list(wanted)}")
    if report["missing_keys"]:
        raise CheckpointError(f"{directory}: missing tensors: {', '.join(sorted(report['missing_keys']))}")
    if report["unexpected_keys"]:
        raise CheckpointError(f"{directory}: unknown tensors: {', '.join(sorted(report['unexpected_keys']))}")


def _has(directory: Path, names: Sequence[str]) -> bool:
    return any((directory / name).exists() for name in names)


class LlavaAdapter:
    """See `model.adapters.base.Adapter`. A checkpoint may lack tokenizer and image processor; then requests
    must bring token ids and pixel values."""

    family = "llava"

    def __init__(
        self, vlm: LlavaForConditionalGeneration, directory: Path, image_fit: ImageFit | None
    ) -> None:
        config = vlm.config
        self.model_id = model_id(directory)
        self.image_token_id = config.image_token_id
        self.max_model_len = config.text_config.max_position_embeddings
        self._load_processor(directory)
        self._read_vision(config, image_fit)
        self._take_weights(vlm)
        eos = vlm.generation_config.eos_token_id
        eos = config.text_config.eos_token_id if eos is None else eos
        self.eos_token_ids = frozenset([eos] if isinstance(eos, int) else eos or [])

    def _load_processor(self, directory: Path) -> None:
        has_processor, has_tokenizer = _has(directory, PROCESSOR_FILES), _has(directory, TOKENIZER_FILES)
        self.processor = self.tokenizer = self.image_processor = None
        if has_processor and has_tokenizer:
            self.processor = AutoProcessor.from_pretrained(directory)
            self.tokenizer, self.image_processor = self.processor.tokenizer, self.processor.image_processor
        elif has_tokenizer:
            self.tokenizer = AutoTokenizer.from_pretrained(directory)
        elif has_processor:
            self.image_processor = AutoImageProcessor.from_pretrained(directory)
        self.decode = None if self.tokenizer is None else self._decode

    def _read_vision(self, config: LlavaConfig, image_fit: ImageFit | None) -> None:
        vision = config.vision_config
        side = vision.image_size // vision.patch_size
        class_token = int(vision.model_type == "clip_vision_model")
        cropped = int(config.vision_feature_select_strategy == "default")
        self.image_tokens = side * side + class_token - cropped
        self.grid = (side, side)
        self.image_shape = (getattr(vision, "num_channels", 3), vision.image_size, vision.image_size)
        self.image = self._image_spec(vision.image_size, image_fit)

    def _image_spec(self, side: int, image_fit: ImageFit | None) -> ImageSpec:
        if image_fit == "pad":
            return ImageSpec(side, side, "pad")
        crop = self.image_processor is None or getattr(self.image_processor, "do_center_crop", False)
        return ImageSpec(side, side, "crop" if crop else "stretch")

    def _take_weights(self, vlm: LlavaForConditionalGeneration) -> None:
        text, language = vlm.config.text_config, vlm.model.language_model
        self.shape = DecoderShape(
            hidden=text.hidden_size,
            intermediate=text.intermediate_size,
            heads=text.num_attention_heads,
            kv_heads=text.num_key_value_heads,
            head_dim=text.head_dim,
            norm_eps=text.rms_norm_eps,
            vocabulary=text.vocab_size,
            qkv_bias=text.attention_bias,
            out_bias=text.attention_bias,
        )
        self._embedding = language.embed_tokens.weight.detach()
        self._rotary = language.rotary_emb
        self.head = Head(language.norm.weight.detach(), vlm.lm_head.weight.detach(), self.shape)
        self.layers = []
        while len(language.layers):
            # Each of transformers' layers goes as soon as ours is made: never two decoders in memory.
            self.layers.append(DecoderLayer(dict(_detached(language.layers[0])), self.shape))
            del language.layers[0]
        vlm.lm_head = None
        self._vision = vlm.model

    def embed(self, token_ids: Tensor) -> Tensor:
        return F.embedding(token_ids, self._embedding)

    def rope(self, positions: int) -> Tensor:
        device = self._embedding.device
        like = torch.empty(0, dtype=torch.float32, device=device)
        cos, sin = self._rotary(like, torch.arange(positions, device=device)[None])
        return rotary_table(cos[0], sin[0])

    def prepare_images(self, images: Sequence[Any]) -> Tensor:
        if self.image_processor is None:
            raise RequestError("this checkpoint has no image processor: give pixel_values", param="images")
        pictures = [_to_pil(image) for image in images]
        if self.image.fit == "pad":
            pictures = [_pad_to_square(picture, self.image.pad_color) for picture in pictures]
        return self.image_processor(images=pictures, return_tensors="pt")["pixel_values"]

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        pixels = pixel_values.to(self._embedding.device, self._embedding.dtype)
        features = self._vision.get_image_features(pixel_values=pixels, return_dict=True).pooler_output
        return torch.cat(list(features))

    def prompt_token_ids(self, prompt: str, images: int) -> list[int]:
        if self.tokenizer is None:
            raise RequestError("this checkpoint has no tokenizer: give prompt_token_ids", param="prompt")
        text = self._chat_text(prompt, images)
        bos = self.tokenizer.bos_token
        ids = self.tokenizer(text, add_special_tokens=not (bos and text.startswith(bos)))["input_ids"]
        return list(ids)

    def _chat_text(self, prompt: str, images: int) -> str:
        source = self.processor or self.tokenizer
        if not (getattr(source, "chat_template", None) or self.tokenizer.chat_template):
            placeholder = self.tokenizer.convert_ids_to_tokens(self.image_token_id)
            return PLAIN_TEMPLATE.format(images=f"{placeholder}\n" * images, prompt=prompt)
        content = [{"type": "image"}] * images + [{"type": "text", "text": prompt}]
        message = {"role": "user", "content": content}
        return str(source.apply_chat_template([message], add_generation_prompt=True, tokenize=False))

    def _decode(self, token_ids: Sequence[int]) -> str:
        return str(
            self.tokenizer.decode(
                list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )


def _detached(layer: torch.nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, tensor.detach()) for name, tensor in layer.state_dict().items()]


def _to_pil(image: Any) -> Image.Image:
    return (image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))).convert("RGB")


def _pad_to_square(picture: Image.Image, color: tuple[int, int, int]) -> Image.Image:
    side = max(picture.size)
    square = Image.new("RGB", (side, side), color)
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square
