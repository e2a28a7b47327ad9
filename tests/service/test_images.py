"""Pictures: refused before decoding where they must be, else equal to the image processor's."""

from __future__ import annotations

import contextlib
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service import images
from service.errors import TooLarge, UndecodableImage, Unprocessable, UnsupportedMedia
from service.images import ImageLimits, PreparedImage, decode, prepare
from service.protocol import DynamicSize, ImageSpec
from tests.service.pictures import encoded, huge_png, noise

SAMPLE = Path(__file__).resolve().parents[2] / "docs/samples/dog.png"
LIMITS = ImageLimits(max_bytes=4_000_000, max_pixels=2_000_000)
SQUARE = ImageSpec(height=48, width=48, fit="stretch")
FITS = [
    ImageSpec(height=48, width=48, fit="stretch"),
    ImageSpec(height=40, width=56, fit="stretch"),
    ImageSpec(height=48, width=48, fit="crop"),
    ImageSpec(height=37, width=37, fit="crop"),
    ImageSpec(height=48, width=48, fit="pad"),
]
SIZES = [(48, 48), (200, 100), (100, 201), (1, 2), (3, 40), (333, 32), (49, 47), (640, 480)]


def pixels(picture: PreparedImage) -> np.ndarray:
    return np.frombuffer(picture.rgb, np.uint8).reshape(picture.height, picture.width, 3)


def processed(image: Image.Image, spec: ImageSpec) -> np.ndarray:
    """What transformers' image processor makes of the picture, as uint8 [H, W, 3]."""
    clip = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    llava = pytest.importorskip("transformers.models.llava.image_processing_pil_llava")
    target = {"height": spec.height, "width": spec.width}
    plain = {"do_rescale": False, "do_normalize": False, "return_tensors": "np"}
    if spec.fit == "stretch":
        processor = clip.CLIPImageProcessorPil(size=target, do_center_crop=False)
    elif spec.fit == "crop":
        processor = clip.CLIPImageProcessorPil(size={"shortest_edge": spec.height}, crop_size=target)
    else:
        processor = llava.LlavaImageProcessorPil(
            size={"shortest_edge": spec.height}, crop_size=target, do_pad=True
        )
    chw = processor(image, **plain)["pixel_values"][0]
    return np.moveaxis(np.asarray(chw), 0, -1).astype(np.uint8)


@pytest.mark.parametrize("spec", FITS, ids=lambda s: f"{s.fit}-{s.height}x{s.width}")
@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_equals_the_image_processor(spec: ImageSpec, size: tuple[int, int]) -> None:
    image = noise(*size)
    ours = pixels(prepare(encoded(image, "PNG"), spec, LIMITS))
    np.testing.assert_array_equal(ours, processed(image, spec))


@pytest.mark.parametrize("spec", [FITS[0], FITS[2], FITS[4]], ids=lambda s: s.fit)
def test_processor_has_nothing_left_to_do(spec: ImageSpec) -> None:
    once = pixels(prepare(encoded(noise(90, 70), "PNG"), spec, LIMITS))
    np.testing.assert_array_equal(processed(Image.fromarray(once), spec), once)


OWN_SIZE = ImageSpec(
    height=96, width=96, dynamic=DynamicSize(multiple=8, min_pixels=4 * 64, max_pixels=144 * 64)
)


def own_size(image: Image.Image, spec: ImageSpec) -> np.ndarray:
    """What Qwen2.5-VL's image processor resizes a picture to, as uint8 [H, W, 3]."""
    qwen = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    utils = pytest.importorskip("transformers.image_utils")
    assert spec.dynamic is not None
    size = utils.SizeDict(shortest_edge=spec.dynamic.min_pixels, longest_edge=spec.dynamic.max_pixels)
    chw = np.moveaxis(np.asarray(image), -1, 0)
    resized = qwen.Qwen2VLImageProcessorPil().resize(chw, size, Image.Resampling.BICUBIC, factor=8)
    return np.moveaxis(np.asarray(resized), 0, -1)


@pytest.mark.parametrize("size", [*SIZES, (96, 96), (97, 95), (7, 800)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_own_resolution_equals_the_image_processor(size: tuple[int, int]) -> None:
    image = noise(*size)
    ours = pixels(prepare(encoded(image, "PNG"), OWN_SIZE, LIMITS))
    np.testing.assert_array_equal(ours, own_size(image, OWN_SIZE))
    np.testing.assert_array_equal(own_size(Image.fromarray(ours), OWN_SIZE), ours)


@pytest.mark.parametrize("size", [(1, 201), (402, 2), (2, 300)], ids=str)
def test_strips_have_no_resolution_of_their_own(size: tuple[int, int]) -> None:
    """Too thin by the processor's rule, or too long for max_pixels at one patch's width."""
    small = ImageSpec(height=8, width=8, dynamic=DynamicSize(multiple=8, min_pixels=64, max_pixels=640))
    with pytest.raises(Unprocessable, match="too long and thin"):
        prepare(encoded(noise(*size), "PNG"), small, LIMITS)


@pytest.mark.parametrize(("size", "sent"), [((70, 50), (70, 50)), ((200, 100), (141, 70))], ids=str)
def test_pictures_for_tiles_are_only_shrunk(size: tuple[int, int], sent: tuple[int, int]) -> None:
    tiles = ImageSpec(height=64, width=64, dynamic=DynamicSize(multiple=1, min_pixels=1, max_pixels=10_000))
    picture = prepare(encoded(noise(*size), "PNG"), tiles, LIMITS)
    assert (picture.width, picture.height) == sent


def test_pad_over_several_stripes_equals_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.images.STRIPE_PX", 1000)
    for image in (noise(300, 200), noise(200, 300)):
        np.testing.assert_array_equal(
            pixels(prepare(encoded(image, "PNG"), FITS[4], LIMITS)), processed(image, FITS[4])
        )


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1), (30, 20_000)], ids=str)
def test_extreme_shapes_stay_small(fit: str, size: tuple[int, int]) -> None:
    picture = prepare(encoded(noise(*size), "PNG"), ImageSpec(height=48, width=48, fit=fit), LIMITS)
    assert (picture.height, picture.width, len(picture.rgb)) == (48, 48, 48 * 48 * 3)


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_format_is_read(name: str) -> None:
    picture = prepare(encoded(Image.new("RGB", (60, 40), (200, 40, 90)), name), SQUARE, LIMITS)
    assert np.abs(pixels(picture).astype(int) - (200, 40, 90)).max() <= 6


@pytest.mark.parametrize("name", ["GIF", "WEBP", "TIFF", "PNG"])
def test_animation_gives_its_first_frame(name: str) -> None:
    frames = [Image.new("RGB", (20, 20), color) for color in ((250, 0, 0), (0, 0, 250))]
    data = BytesIO()
    frames[0].save(data, name, save_all=True, append_images=frames[1:])
    red = pixels(prepare(data.getvalue(), SQUARE, LIMITS)).reshape(-1, 3).mean(0)
    assert red[0] > 230
    assert red[2] < 20


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied_once(name: str, orientation: int) -> None:
    back = {
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
    }[orientation]  # fmt: skip
    quadrants = Image.new("RGB", (2, 2))
    quadrants.putdata([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)])
    upright = quadrants.resize((64, 32), Image.Resampling.NEAREST)
    stored = upright if back is None else upright.transpose(back)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = BytesIO()
    stored.save(data, name, exif=exif, **({"quality": 95} if name in ("JPEG", "WEBP") else {}))
    spec = ImageSpec(height=32, width=64, fit="stretch")
    got = pixels(prepare(data.getvalue(), spec, LIMITS))
    assert np.abs(got[8::16, 16::32].astype(int) - np.asarray(upright)[8::16, 16::32]).max() < 40


def test_broken_exif_does_not_refuse_the_picture() -> None:
    data = BytesIO()
    noise(32, 32).save(data, "PNG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    assert prepare(data.getvalue(), SQUARE, LIMITS).width == 48


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_on_white(mode: str) -> None:
    image = Image.new("RGBA", (40, 40), (0, 0, 0, 0)).convert(mode)
    extra = {"transparency": 0} if mode == "P" else {}
    data = BytesIO()
    image.save(data, "PNG", **extra)
    assert pixels(prepare(data.getvalue(), SQUARE, LIMITS)).min() == 255


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "I;16", "LAB", "F"])
def test_odd_modes_become_rgb(mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((30, 30), 32_768, np.uint16))
    else:
        image = Image.new("RGB", (30, 30), (128, 128, 128)).convert("L" if mode == "F" else "RGB")
        image = image.convert("L").convert(mode) if mode in ("1", "F") else _converted(image, mode)
    picture = prepare(encoded(image, "TIFF"), SQUARE, LIMITS)
    middle = pixels(picture).mean()
    assert len(picture.rgb) == 48 * 48 * 3
    assert 100 < middle < 156


def _converted(image: Image.Image, mode: str) -> Image.Image:
    if mode != "LAB":
        return image.convert(mode)
    from PIL import ImageCms

    to_lab = ImageCms.buildTransform(
        ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
    )
    return ImageCms.applyTransform(image, to_lab)


def test_hash_is_of_the_pixels() -> None:
    image = noise(30, 30)
    first = prepare(encoded(image, "PNG"), SQUARE, LIMITS)
    second = prepare(encoded(image, "BMP"), SQUARE, LIMITS)
    assert first == second


def test_empty() -> None:
    with pytest.raises(UndecodableImage, match="empty"):
        prepare(b"", SQUARE, LIMITS)


@pytest.mark.parametrize(
    "data",
    [b"just text, named .jpg", b"%PDF-1.7", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"\x00" * 64],
)
def test_other_content_is_415(data: bytes) -> None:
    with pytest.raises(UnsupportedMedia, match="JPEG, PNG"):
        prepare(data, SQUARE, LIMITS)


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6])
def test_truncated_is_422(name: str, share: float) -> None:
    data = encoded(noise(200, 200), name)
    with pytest.raises(UndecodableImage):
        prepare(data[: max(12, int(len(data) * share))], SQUARE, LIMITS)


def test_too_many_bytes_is_413() -> None:
    with pytest.raises(TooLarge, match="at most 100"):
        prepare(b"\xff\xd8\xff" + bytes(200), SQUARE, ImageLimits(max_bytes=100, max_pixels=10))


@pytest.mark.parametrize("side", [1_500, 12_000, 20_000, 2**31 - 1])
def test_pixel_count_is_refused_by_the_header(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("was decoded"))
    with pytest.raises(TooLarge, match="pixels"):
        prepare(huge_png(side, side), SQUARE, LIMITS)


def test_one_long_side_is_refused() -> None:
    with pytest.raises(TooLarge, match="a side"):
        prepare(huge_png(70_000, 1), SQUARE, LIMITS)


def test_decompression_bomb_in_a_text_chunk() -> None:
    text = zlib.compress(b"x" * 80_000_000)
    chunk = b"zTXt" + b"Comment\x00\x00" + text
    data = encoded(noise(8, 8), "PNG")
    bomb = (
        data[:33]
        + struct.pack(">I", len(chunk) - 4)
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
        + data[33:]
    )
    with pytest.raises(UndecodableImage):
        prepare(bomb, SQUARE, LIMITS)


def test_hostile_bytes_never_escape_the_tree() -> None:
    """Every single-byte change in a header is a picture, a 413 or a 422."""
    rng = np.random.default_rng(7)
    for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        whole = bytearray(encoded(noise(24, 24), name))
        for _ in range(60):
            broken = bytearray(whole)
            for at in rng.integers(12, min(len(whole), 160), 3):
                broken[at] = rng.integers(0, 256)
            with contextlib.suppress(TooLarge, UndecodableImage):
                prepare(bytes(broken), SQUARE, LIMITS)


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("turn", [1, 6])
def test_a_large_jpeg_is_decoded_smaller_and_looks_the_same(fit: Any, turn: int) -> None:
    """Off by less than the JPEG is from the picture it was made of; and what is not large is exact."""
    spec = ImageSpec(height=48, width=48, fit=fit)
    with Image.open(SAMPLE) as sample:
        photo = sample.convert("RGB").resize((640, 480))
    exif = Image.Exif()
    exif[0x0112] = turn
    data = BytesIO()
    photo.save(data, "JPEG", quality=85, exif=exif)
    shown = photo if turn == 1 else photo.transpose(Image.Transpose.ROTATE_270)
    assert decode(data.getvalue(), "JPEG", LIMITS, spec).size == tuple(side // 8 for side in shown.size)
    ours = prepare(data.getvalue(), spec, LIMITS).rgb
    with Image.open(data) as whole:
        exact = images.fit(images.upright(whole).convert("RGB"), spec).tobytes()
    assert mean_difference(ours, exact) < mean_difference(exact, images.fit(shown, spec).tobytes()) + 1
    near = ImageSpec(height=400, width=400, fit=fit)
    with Image.open(data) as whole:
        exact = images.fit(images.upright(whole).convert("RGB"), near).tobytes()
    assert prepare(data.getvalue(), near, LIMITS).rgb == exact


def mean_difference(one: bytes, other: bytes) -> float:
    return float(np.abs(np.frombuffer(one, np.uint8).astype(int) - np.frombuffer(other, np.uint8)).mean())
