"""The questions both sides are asked: token ids and pixels, made once by the checkpoint's own processor.

Image preparation is thus in neither side's times. Knows nothing of the engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor

QUESTION = "Describe the image."
SAMPLES = Path(__file__).resolve().parents[2] / "docs" / "samples"


@dataclass(frozen=True)
class Prompt:
    """ids: image placeholders expanded. pixels: [1, 3, height, width] float32."""

    ids: list[int]
    pixels: Tensor


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
    processor = AutoProcessor.from_pretrained(base, backend="pil")
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    words = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    prompts = []
    for picture in pictures(count):
        inputs = processor(images=[picture], text=words, return_tensors="pt")
        prompts.append(Prompt(inputs.input_ids[0].tolist(), inputs.pixel_values))
    return prompts
