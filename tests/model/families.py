"""Tiny random LLaVA-NeXT and Qwen2.5-VL checkpoints, their references, questions on pictures of any size.

Built and read with transformers alone, laid out as the Hub's; tokens a picture takes are counted by what
transformers' own tower gives.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLDecoderLayer

from model.engine import Engine, EngineConfig
from model.request import Request, SamplingParams
from tests.model.reference import Reference
from tests.model.tiny import (
    CHAT_TEMPLATE,
    Shape,
    TwigShape,
    build_tokenizer,
    randomise,
    silence_specials,
    twig_tensors,
    write_twig,
)

Size = tuple[int, int]  # height, width
VISION_SPECIALS = ("<|vision_start|>", "<|vision_end|>")
PINPOINTS = [[32, 64], [64, 32], [64, 64]]
PATCH, MERGE = 4, 2
QWEN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: "
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><image><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
# As the Hub's Qwen2.5-VL directories have it, with pictures of 4 to 24 merged patches.
QWEN_PREPROCESSOR = {
    "min_pixels": 4 * (PATCH * MERGE) ** 2,
    "max_pixels": 24 * (PATCH * MERGE) ** 2,
    "patch_size": PATCH,
    "temporal_patch_size": 2,
    "merge_size": MERGE,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2_5_VLProcessor",
}


@dataclass(frozen=True)
class Question:
    """ids: placeholders expanded; short_ids: one an image. tensors: what transformers' processor gives."""

    ids: list[int]
    short_ids: list[int]
    pictures: list[Image.Image]
    tensors: dict[str, Tensor]

    @property
    def image_tokens(self) -> int:
        return len(self.ids) - len(self.short_ids) + len(self.pictures)


class QwenReference(Reference):
    """Positions on three axes by transformers' own rule; pixels are the processor's tensors."""

    vlm_class = Qwen2_5_VLForConditionalGeneration
    layer_class = Qwen2_5_VLDecoderLayer

    def _features(self, pixels: Mapping[str, Tensor]) -> Any:
        return self.vlm.get_image_features(**pixels).pooler_output

    def _positions(self, ids: list[int], prompt_length: int, pixels: Mapping[str, Tensor] | None) -> Tensor:
        answer = torch.arange(len(ids) - prompt_length)
        if not pixels:
            return torch.arange(len(ids)).expand(3, -1)
        prompt = torch.tensor([ids[:prompt_length]])
        kinds = (prompt == self.vlm.config.image_token_id).int()
        positions, _ = self.vlm.model.get_rope_index(prompt, kinds, image_grid_thw=pixels["image_grid_thw"])
        return torch.cat([positions[:, 0], (positions.max() + 1 + answer).expand(3, -1)], dim=1)

    def _rotary(self, hidden: Tensor, positions: Tensor) -> Any:
        return self.language.rotary_emb(hidden, positions[:, None])


class LlavaNextReference(Reference):
    vlm_class = LlavaNextForConditionalGeneration

    def _features(self, pixels: Mapping[str, Tensor]) -> Any:
        return self.vlm.get_image_features(**pixels).pooler_output


@dataclass
class Family:
    """One tiny checkpoint with its twig. reference: how its method is written out plainly."""

    directory: Path
    vlm: Any
    tokenizer: PreTrainedTokenizerFast
    twig: TwigShape
    reference: Callable[[Path, Path, TwigShape], Reference]

    @property
    def base_path(self) -> Path:
        return self.directory / "base"

    @property
    def twig_path(self) -> Path:
        return self.directory / "twig"

    def engine(self, *, twig: bool = True, **config: Any) -> Engine:
        settings = EngineConfig(**({"max_batch": 4, "governor": False} | config))
        return Engine.from_pretrained(
            self.base_path, self.twig_path if twig else None, dtype="float32", config=settings
        )

    def question(self, seed: int, *parts: int | Size) -> Question:
        """parts: the length of a run of random words, or the size of a picture of noise."""
        draw = np.random.default_rng(seed)
        ordinary = len(self.tokenizer) - 100
        pictures = [
            Image.fromarray(draw.integers(0, 256, (*part, 3), dtype=np.uint8))
            for part in parts
            if isinstance(part, tuple)
        ]
        tensors = self.processed(pictures)
        counts = iter([len(features) for features in self.features(tensors)])
        placeholder, short, ids = self.vlm.config.image_token_id, [1], [1]
        for part in parts:
            if isinstance(part, tuple):
                short.append(placeholder)
                ids += [placeholder] * next(counts)
            else:
                words = (100 + draw.integers(0, ordinary, part)).tolist()
                short, ids = short + words, ids + words
        return Question(ids, short, pictures, tensors)

    def processed(self, pictures: list[Image.Image]) -> dict[str, Tensor]:
        if not pictures:
            return {}
        processor = AutoImageProcessor.from_pretrained(self.base_path, backend="pil")
        return dict(processor(images=pictures, return_tensors="pt"))

    @torch.no_grad()
    def features(self, tensors: Mapping[str, Tensor]) -> Any:
        return self.vlm.get_image_features(**tensors).pooler_output if tensors else []

    def generate(self, question: Question, max_tokens: int) -> list[int]:
        """What transformers answers, greedily."""
        ids = torch.tensor([question.ids])
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)} | question.tensors
        if isinstance(self.vlm, Qwen2_5_VLForConditionalGeneration):
            inputs["mm_token_type_ids"] = (ids == self.vlm.config.image_token_id).int()
        output = self.vlm.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)
        return output[0, ids.shape[1] :].tolist()


def ask(question: Question, name: str, *, max_tokens: int = 12, **fields: Any) -> Request:
    return Request(
        prompt_token_ids=question.short_ids,
        images=list(question.pictures),
        sampling=SamplingParams(max_tokens=max_tokens),
        request_id=name,
        **fields,
    )


def _text(shape: Shape, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    hidden = shape.heads * shape.head_dim
    return {
        "vocab_size": len(tokenizer) + shape.padded_rows,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "max_position_embeddings": shape.max_len,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _finish(
    directory: Path,
    vlm: Any,
    tokenizer: PreTrainedTokenizerFast,
    shape: Shape,
    reference: Callable[[Path, Path, TwigShape], Reference],
) -> Family:
    vlm.eval()
    randomise(vlm, shape)
    silence_specials(vlm, tokenizer)
    vlm.generation_config.eos_token_id = tokenizer.eos_token_id
    vlm.generation_config.pad_token_id = tokenizer.pad_token_id
    vlm.save_pretrained(directory / "base")
    # M differs from picture to picture, so a twig has no R-bar of its own.
    twig = replace(TwigShape(), retained_tokens=None)
    write_twig(directory / "twig", vlm, twig, tensors=twig_tensors(vlm, twig))
    return Family(directory, vlm, tokenizer, twig, reference)


def write_llava_next(directory: Path, shape: Shape, *, mistral: bool = False) -> Family:
    tokenizer = build_tokenizer()
    text = _text(shape, tokenizer) | {"head_dim": shape.head_dim}
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**tower, image_size=32, patch_size=8),
        text_config=MistralConfig(**text, sliding_window=None) if mistral else LlamaConfig(**text),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=PINPOINTS,
        vision_feature_layer=-2,
    )
    LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=PINPOINTS
        ),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(directory / "base")
    vlm = LlavaNextForConditionalGeneration(config)
    return _finish(directory, vlm, tokenizer, shape, LlavaNextReference)


def write_qwen(directory: Path, shape: Shape, *, tied: bool = False) -> Family:
    tokenizer = build_tokenizer(*VISION_SPECIALS)
    tokenizer.chat_template = QWEN_TEMPLATE
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "window_size": 2 * PATCH * MERGE,
            "fullatt_block_indexes": [1],
            "out_hidden_size": shape.heads * shape.head_dim,
        },
        text_config=_text(shape, tokenizer)
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids(VISION_SPECIALS[0]),
        vision_end_token_id=tokenizer.convert_tokens_to_ids(VISION_SPECIALS[1]),
        tie_word_embeddings=tied,
    )
    (directory / "base").mkdir(parents=True)
    tokenizer.save_pretrained(directory / "base")
    (directory / "base" / "preprocessor_config.json").write_text(json.dumps(QWEN_PREPROCESSOR))
    vlm = Qwen2_5_VLForConditionalGeneration(config)
    return _finish(directory, vlm, tokenizer, shape, QwenReference)
