"""The questions both sides are asked: token ids and pixels, made once by the checkpoint's own processor.

Image preparation is thus in neither side's times. Knows nothing of the engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor
from transformers import AutoConfig

from model.words import Words

# Their processors in transformers want torchvision, for videos.
NO_PROCESSOR = ("qwen2_5_vl",)
QUESTION = "Describe the image."
SAMPLES = Path(__file__).resolve().parents[2] / "docs" / "samples"


@dataclass(frozen=True)
class Prompt:
    """ids: image placeholders expanded. pixels: [1, 3, height, width] float32, or all the tower takes."""

    ids: list[int]
    pixels: Tensor | dict[str, Tensor]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """By the names of transformers."""
        return self.pixels if isinstance(self.pixels, dict) else {"pixel_values": self.pixels}


def synthetic_picture(seed: int, side: int = 192) -> Image.Image:
    """Coloured rectangles on noise; for a machine that has no sample pictures."""
    draw = np.random.default_rng(seed)
    canvas = draw.integers(0, 64, (side, side, 3), dtype=np.uint8)
    for _ in range(5):
        top, left = draw.integers(0, side * 3 // 4, 2)
        height, width = draw.integers(side // 8, side // 3, 2)
        canvas[top : top + height, left : left + width] = draw.integers(0, 256, 3, dtype=np.uint8)
    return Image.fromarray(canvas)


def pictures(count: int, samples: Path = SAMPLES) -> list[Image.Image]:
    """The sample pictures, over and over; without any, synthetic ones."""
    files = sorted(samples.glob("*.png"))
    if not files:
        return [synthetic_picture(seed) for seed in range(count)]
    return [Image.open(files[index % len(files)]).convert("RGB") for index in range(count)]


def build_prompts(base: Path, count: int) -> list[Prompt]:
    config = AutoConfig.from_pretrained(base)
    words = Words(base, config.image_token_id, whole=config.model_type not in NO_PROCESSOR)
    return [_prompt(words, picture) for picture in pictures(count)]


def _prompt(words: Words, picture: Image.Image) -> Prompt:
    if words.processor is None:
        return _prompt_of_parts(words, picture)
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    message = {"role": "user", "content": content}
    text = words.processor.apply_chat_template([message], add_generation_prompt=True)
    inputs = dict(words.processor(images=[picture], text=text, return_tensors="pt"))
    ids = inputs.pop("input_ids")[0].tolist()
    del inputs["attention_mask"]
    return Prompt(ids, inputs["pixel_values"] if len(inputs) == 1 else inputs)


def _prompt_of_parts(words: Words, picture: Image.Image) -> Prompt:
    """Without transformers' processor the placeholder is expanded here, by its rule for merged patches."""
    pixels = dict(words.processed([picture]))
    tokens = int(pixels["image_grid_thw"].prod()) // words.image_processor.merge_size**2
    ids: list[int] = []
    for token in words.prompt_token_ids(QUESTION, images=1):
        ids += [token] * (tokens if token == words.image_token_id else 1)
    return Prompt(ids, pixels)
