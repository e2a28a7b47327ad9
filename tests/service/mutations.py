"""Broken pictures without end: a sound file of each format, and seeded damage to it.

Damage is what files suffer and what attackers do: flipped bits, lengths and sizes that lie, parts cut out,
doubled, moved, put in from another file.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from PIL import Image

from service.images import FORMATS
from tests.service.pictures import encoded, noise

INTERESTING = (0, 1, 0x7F, 0x80, 0xFF)
# In the head of a file are its sizes, so half of the damage is done there.
HEAD_BYTES = 64


def seeds(name: str) -> list[bytes]:
    """Small sound files of a format, in its several ways to hold pixels."""
    picture = noise(24, 17)
    images = [picture, picture.convert("L")]
    if name in ("PNG", "GIF", "TIFF", "BMP"):
        images.append(picture.quantize(16))
    if name in ("PNG", "WebP", "TIFF"):
        images.append(picture.convert("RGBA"))
    if name in ("PNG", "TIFF"):
        images.append(picture.convert("I;16") if picture.mode == "I" else Image.new("I;16", (9, 7), 40_000))
    return [encoded(image, name) for image in images]


def mutated(name: str, count: int, seed: int) -> Iterator[bytes]:
    """`count` files; the same for the same arguments."""
    pool = seeds(name)
    others = [data for other in FORMATS for data in seeds(other)]
    for number in range(count):
        chance = random.Random(f"{name}-{seed}-{number}")
        data = bytearray(chance.choice(pool))
        for _ in range(chance.choice((1, 1, 2, 4, 16))):
            data = _damaged(data, chance, others)
        yield bytes(data)


def _damaged(data: bytearray, chance: random.Random, others: list[bytes]) -> bytearray:
    if not data:
        return bytearray(chance.randbytes(16))
    place = chance.randrange(min(len(data), HEAD_BYTES) if chance.random() < 0.5 else len(data))
    length = chance.choice((1, 2, 4, 8, 64))
    match chance.randrange(7):
        case 0:
            data[place] ^= 1 << chance.randrange(8)
        case 1:
            data[place : place + length] = bytes((chance.choice(INTERESTING),)) * length
        case 2:
            data[place : place + length] = chance.randbytes(length)
        case 3:
            del data[place : place + length]
        case 4:
            data[place:place] = data[place : place + length]
        case 5:
            del data[place:]
        case _:
            other = chance.choice(others)
            start = chance.randrange(len(other))
            data[place : place + length] = other[start : start + length]
    return data
