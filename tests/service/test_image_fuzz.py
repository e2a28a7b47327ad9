"""Broken pictures of every format: a picture or one of four refusals, soon, in bounded memory; never a 5xx.

`make fuzz` sends 10,000 of each; `make test` a few hundred.
"""

from __future__ import annotations

import io
import os
import resource
import time
import zlib
from collections import Counter

import httpx
import pytest
from PIL import Image

from service.errors import TooLarge, UndecodableImage, UnsupportedMedia
from service.images import FORMATS, ImageLimits, prepare
from service.protocol import ImageSpec
from tests.service.mutations import mutated, seeds
from tests.service.pictures import encoded, noise
from tests.service.scripted_worker import ScriptedWorker
from tests.service.test_describe import post_form

COUNT = int(os.environ.get("FUZZ_COUNT", "300"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))
OVER_HTTP = 25
REFUSALS = (TooLarge, UndecodableImage, UnsupportedMedia)
LIMITS = ImageLimits(max_bytes=1_000_000, max_pixels=1_000_000)
SPEC = ImageSpec(height=24, width=24, fit="pad")
# A picture of max_pixels in the modes it passes through, many times over; a bomb would be gigabytes.
MAX_GROWTH_BYTES = 128 * 1024 * 1024
# Processor time, not the clock's: the machine may be busy.
SLOW_S = 5.0


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.timeout(3600 if COUNT > 1000 else 300)
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.filterwarnings("ignore")
def test_damage_ends_in_a_picture_or_a_refusal(name: str) -> None:
    for seed in seeds(name):
        prepare(seed, SPEC, LIMITS)
    before, ends = peak_bytes(), Counter[str]()
    for number, data in enumerate(mutated(name, COUNT, SEED)):
        began = time.process_time()
        ends[outcome(data)] += 1
        assert time.process_time() - began < SLOW_S, f"{name} {SEED} {number}"
    assert peak_bytes() - before < MAX_GROWTH_BYTES
    assert ends["UndecodableImage"] > 0, ends
    assert ends["picture"] > 0, ends
    print(f"\n{name}: {dict(ends)}")


def outcome(data: bytes) -> str:
    try:
        picture = prepare(data, SPEC, LIMITS)
    except REFUSALS as refusal:
        return type(refusal).__name__
    assert len(picture.rgb) == 24 * 24 * 3
    return "picture"


async def test_damage_over_http_is_never_a_5xx(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    for name in FORMATS:
        for data in mutated(name, OVER_HTTP, SEED + 1):
            answer = await post_form(client, image=data)
            assert answer.status_code in (200, 413, 415, 422), (name, answer.text)


# --- bombs: refused from the header, or never looked at ---


def test_a_picture_of_many_frames_costs_as_much_as_its_first() -> None:
    """Later frames are neither counted nor decoded, whatever the file says of them."""
    frames = [noise(64, 64, seed) for seed in range(60)]
    for name in ("GIF", "WebP", "PNG", "TIFF"):
        data = io.BytesIO()
        frames[0].save(data, name, save_all=True, append_images=frames[1:])
        alone = prepare(encoded(first_of(data.getvalue()), "PNG"), SPEC, LIMITS)
        assert prepare(data.getvalue(), SPEC, LIMITS).rgb == alone.rgb, name


def first_of(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")


def test_pixels_that_a_few_bytes_promise_are_refused_from_the_header() -> None:
    for name in ("PNG", "GIF", "BMP", "TIFF", "WebP"):
        before = peak_bytes()
        blank = Image.new("L", (1001, 1000))
        with pytest.raises(TooLarge):
            prepare(encoded(blank, name), SPEC, LIMITS)
        assert peak_bytes() - before < MAX_GROWTH_BYTES


def test_text_that_unpacks_to_much_more_is_no_picture() -> None:
    """A compressed text chunk of 64 MB in 64 kB: PIL reads such chunks when it opens the file."""
    png = encoded(noise(8, 8), "PNG")
    body = b"zTXt" + b"k\x00\x00" + zlib.compress(bytes(64 * 1024 * 1024), 9)
    chunk = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    before = peak_bytes()
    with pytest.raises(UndecodableImage):
        prepare(png[:33] + chunk + png[33:], SPEC, LIMITS)
    assert peak_bytes() - before < MAX_GROWTH_BYTES
