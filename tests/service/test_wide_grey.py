"""Grey of more than 8 bits: the same picture as in 8, or refused."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.errors import UndecodableImage
from service.images import prepare
from tests.service.pictures import encoded
from tests.service.test_images import LIMITS, SQUARE, pixels

GREYS = np.linspace(0, 255, 900).astype(np.uint8).reshape(30, 30)


@pytest.mark.parametrize(
    ("wide", "extra"),
    [
        (GREYS.astype(np.uint16) * 257, {}),
        (GREYS.astype(np.uint16) * 257, {"transparency": 65_535}),
        (GREYS.astype(np.int32) * 257, {}),
        (GREYS.astype(np.int32), {}),
        (GREYS / np.float32(255), {}),
        (GREYS.astype(np.float32), {}),
    ],
    ids=["16 bits", "16 bits, white is clear", "integers to 65535", "integers", "floats to 1", "floats"],
)
def test_wide_grey_is_the_same_picture(wide: Any, extra: dict[str, int]) -> None:
    """Caught once: white or black all over, and described with confidence."""
    data = BytesIO()
    Image.fromarray(wide).save(data, "PNG" if extra else "TIFF", **extra)
    plain = pixels(prepare(encoded(Image.fromarray(GREYS), "PNG"), SQUARE, LIMITS))
    assert np.abs(pixels(prepare(data.getvalue(), SQUARE, LIMITS)).astype(int) - plain).max() <= 1


def test_what_is_clear_in_16_bits_is_white() -> None:
    data = BytesIO()
    Image.fromarray(np.full((30, 30), 40_000, np.uint16)).save(data, "PNG", transparency=40_000)
    assert pixels(prepare(data.getvalue(), SQUARE, LIMITS)).min() == 255


@pytest.mark.parametrize("value", [-1.0, 1e6, float("nan")])
def test_grey_without_a_known_white_is_refused(value: float) -> None:
    data = encoded(Image.fromarray(np.full((30, 30), value, np.float32)), "TIFF")
    with pytest.raises(UndecodableImage, match="which value is white"):
        prepare(data, SQUARE, LIMITS)
