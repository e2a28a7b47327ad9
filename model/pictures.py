"""Pictures as LLaVA-1.5 takes them: padded to a square, and of how many visual tokens.

The engine's adapter and the training of a twig must agree on both. Knows no weights.
"""

from __future__ import annotations

from typing import Any

from PIL import Image


def tokens_of(config: Any) -> tuple[int, tuple[int, int]]:
    """M of a picture, and [rows, columns] of the tower's patches."""
    vision = config.vision_config
    side = vision.image_size // vision.patch_size
    class_token = int(vision.model_type == "clip_vision_model")
    cropped = int(config.vision_feature_select_strategy == "default")
    return side * side + class_token - cropped, (side, side)


def pad_to_square(picture: Image.Image, color: tuple[int, int, int]) -> Image.Image:
    side = max(picture.size)
    square = Image.new("RGB", (side, side), color)
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square
