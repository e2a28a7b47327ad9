"""Pictures that differ from each other: the samples of docs/, shifted and tinted."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageChops, ImageEnhance

from loadtest.scenarios import PICTURES

SAMPLES = sorted((Path(__file__).resolve().parent.parent / "docs/samples").glob("*.png"))


def pictures() -> list[str]:
    """PICTURES of them, as base64 of JPEG files."""
    originals = [Image.open(path).convert("RGB") for path in SAMPLES]
    return [_encoded(originals[number % len(originals)], number) for number in range(PICTURES)]


def _encoded(original: Image.Image, number: int) -> str:
    moved = ImageChops.offset(original, 3 * number, 0)
    data = BytesIO()
    ImageEnhance.Brightness(moved).enhance(0.8 + 0.4 * number / PICTURES).save(data, "JPEG", quality=90)
    return base64.b64encode(data.getvalue()).decode()
