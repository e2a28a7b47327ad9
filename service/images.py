"""A client's file becomes the picture the vision tower wants: checked, upright, RGB, of the right size.

Invariant: nothing is decoded before its byte size, its format (from its content, never its name) and
its pixel count (from its header) have passed; and the result equals, byte for byte, what the
checkpoint's own image processor makes of the same picture (extreme strips and large JPEGs aside), so
that the processor in the worker has nothing left to resize. A JPEG of more than twice the wanted size is
decoded at a half, a quarter or an eighth (the codec's own scaling, a mean over blocks): three to ten times
as fast, and off by less than the JPEG itself was. Where the model cuts tiles out of a picture of any
size, it is only shrunk here to a size from which they can be cut.
Must not know: torch, HTTP bodies, the queue.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from io import BytesIO
from typing import cast

from PIL import Image

from service.errors import ApiError, TooLarge, UndecodableImage, Unprocessable, UnsupportedMedia
from service.protocol import DynamicSize, ImageSpec

FORMATS = ("JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF")
SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
)
# One side alone can blow up a resize (1 x 40,000,000 has few pixels); no camera or scanner comes near it.
MAX_SIDE_PX = 65_535
# Of grey wider than 16 bits nothing says which value is white: the least of these that none is above.
WHITES = {"I": (255, 65_535), "F": (1, 255, 65_535)}
# A single pixel shows nothing.
MIN_PIXELS = 2
# Beyond this long:short ratio a picture is a strip, whose exact resize would cost gigabytes or minutes:
# the crop is resized from its box alone, the pad from a reduced strip, and both may differ by rounding.
MAX_STRIP_RATIO = 16
STRIP_OVERSAMPLING = 8
# What transformers' processors of dynamic resolution refuse.
MAX_DYNAMIC_RATIO = 200
STRIPE_PX = 4_000_000
ORIENTATION_TAG = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
BICUBIC = Image.Resampling.BICUBIC


@dataclass(frozen=True)
class ImageLimits:
    max_bytes: int
    max_pixels: int


@dataclass(frozen=True)
class PreparedImage:
    """rgb: uint8 [height, width, 3], row by row. sha256: hex digest of `rgb`."""

    height: int
    width: int
    rgb: bytes
    sha256: str


def prepare(data: bytes, spec: ImageSpec, limits: ImageLimits) -> PreparedImage:
    check_size(data, limits)
    image = fit(decode(data, sniff(data), limits, spec), spec)
    rgb = image.tobytes()
    return PreparedImage(image.height, image.width, rgb, hashlib.sha256(rgb).hexdigest())


def check_size(data: bytes, limits: ImageLimits) -> None:
    if not data:
        raise UndecodableImage("The image is empty.", param="image")
    if len(data) > limits.max_bytes:
        raise TooLarge(
            f"The image has {len(data)} bytes; at most {limits.max_bytes} are read.",
            param="image",
            code="image_too_large",
        )


def sniff(data: bytes) -> str:
    """The format by its first bytes; 415 for all that is not in FORMATS."""
    for signature, name in SIGNATURES:
        if data.startswith(signature):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    raise UnsupportedMedia(
        f"The content of the image is none of {', '.join(FORMATS)}.",
        param="image",
        code="unsupported_image_format",
    )


def decode(data: bytes, name: str, limits: ImageLimits, spec: ImageSpec) -> Image.Image:
    """The first frame, upright and RGB, not smaller than the spec wants it.

    413 by the header alone, 422 for whatever the codec does not like.
    """
    try:
        with Image.open(BytesIO(data), formats=[name]) as image:
            check_pixels(image.width, image.height, limits)
            if name == "JPEG" and spec.dynamic is None:
                image.draft(None, least_size(image.size, spec))
            image.load()
            return to_rgb(upright(image))
    except ApiError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as bomb:
        raise TooLarge(
            f"The image has too many pixels; at most {limits.max_pixels} are read.",
            param="image",
            code="image_too_large",
        ) from bomb
    except Exception as broken:  # on hostile bytes a codec may raise nearly anything
        raise UndecodableImage(f"The {name} image is broken or truncated.", param="image") from broken


def check_pixels(width: int, height: int, limits: ImageLimits) -> None:
    if width * height < MIN_PIXELS:
        raise Unprocessable(
            f"The image has {width} x {height} pixels; that is no picture.",
            param="image",
            code="image_too_small",
        )
    if width * height <= limits.max_pixels and max(width, height) <= MAX_SIDE_PX:
        return
    raise TooLarge(
        f"The image has {width} x {height} pixels; at most {limits.max_pixels} in all "
        f"and {MAX_SIDE_PX} a side are read.",
        param="image",
        code="image_too_large",
    )


def upright(image: Image.Image) -> Image.Image:
    """Applies the EXIF orientation; broken EXIF data is no reason to refuse a sound picture."""
    try:
        orientation = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:
        return image
    turn = UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def to_rgb(image: Image.Image) -> Image.Image:
    """Transparency is laid on white; wide grey is scaled (PIL's own conversion would clip it to white)."""
    opaque = None
    if image.mode.startswith("I;16"):
        wide, clear = image.convert("I"), image.info.get("transparency")
        image = _scaled(wide, 65_535)
        if isinstance(clear, int):
            opaque = wide.point([255 * (value != clear) for value in range(65_536)], "L")
    elif image.mode in WHITES:
        image = _scaled(image, _white(image))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        opaque = image.getchannel("A")
    if opaque is None:
        return image if image.mode == "RGB" else image.convert("RGB")
    paper = Image.new("RGB", image.size, (255, 255, 255))
    paper.paste(image, mask=opaque)
    return paper


def _scaled(grey: Image.Image, white: float) -> Image.Image:
    scale = 255 / white
    return grey.point(lambda value: value * scale + 0.5).convert("L")


def _white(grey: Image.Image) -> float:
    low, high = cast("tuple[float, float]", grey.getextrema())
    for white in WHITES[grey.mode]:
        if low >= 0 and high <= white:
            return white
    message = "The image is grey of 32 bits, and which value is white cannot be told: send 8 or 16 bits."
    raise UndecodableImage(message, param="image")


def least_size(size: tuple[int, int], spec: ImageSpec) -> tuple[int, int]:
    """What must be left of a picture of this size, so that `fit` never enlarges what was larger; whichever
    way up it will be turned.
    """
    short, long = min(size), max(size)
    if long > MAX_STRIP_RATIO * short:
        return size
    if spec.fit == "pad":
        share = min(1.0, max(spec.width, spec.height) / long)
        return math.ceil(size[0] * share), math.ceil(size[1] * share)
    edge = min(spec.height, spec.width) if spec.fit == "crop" else max(spec.height, spec.width)
    return edge, edge


def fit(image: Image.Image, spec: ImageSpec) -> Image.Image:
    if spec.dynamic is not None:
        return image.resize(dynamic_size(image.width, image.height, spec.dynamic), BICUBIC)
    if spec.fit == "stretch":
        return image.resize((spec.width, spec.height), BICUBIC)
    if spec.fit == "pad":
        return _pad(image, spec)
    return _crop(image, spec)


def dynamic_size(width: int, height: int, size: DynamicSize) -> tuple[int, int]:
    """Sides that are multiples, of about the picture's own shape, with min_pixels to max_pixels in all.

    The nearest multiples where those have pixels enough and not too many; else the picture is scaled to
    the limit, and its sides go to the next multiple inside it.
    """
    step, sides = size.multiple, (width, height)
    if max(sides) > MAX_DYNAMIC_RATIO * min(sides):
        raise _too_thin(f"more than {MAX_DYNAMIC_RATIO} times as long as wide")
    fitted = [round(side / step) * step for side in sides]
    if math.prod(fitted) > size.max_pixels:
        scale = math.sqrt(width * height / size.max_pixels)
        fitted = [max(step, math.floor(side / scale / step) * step) for side in sides]
    elif math.prod(fitted) < size.min_pixels:
        scale = math.sqrt(size.min_pixels / (width * height))
        fitted = [math.ceil(side * scale / step) * step for side in sides]
    if math.prod(fitted) > size.max_pixels:
        raise _too_thin(f"its shape does not fit into {size.max_pixels} pixels")
    return fitted[0], fitted[1]


def _too_thin(why: str) -> Unprocessable:
    return Unprocessable(f"The image is too long and thin: {why}.", param="image", code="impossible_image")


def _crop(image: Image.Image, spec: ImageSpec) -> Image.Image:
    """The shorter side resized to the target's shorter side, then the centre cut out."""
    edge = min(spec.height, spec.width)
    short, long = min(image.size), max(image.size)
    if long > MAX_STRIP_RATIO * short:
        return _crop_box(image, spec, short / edge)
    new_long = int(edge * long / short)
    wide = image.width > image.height
    resized = image.resize((new_long, edge) if wide else (edge, new_long), BICUBIC)
    left, top = (resized.width - spec.width) // 2, (resized.height - spec.height) // 2
    return resized.crop((left, top, left + spec.width, top + spec.height))


def _crop_box(image: Image.Image, spec: ImageSpec, scale: float) -> Image.Image:
    width, height = min(spec.width * scale, image.width), min(spec.height * scale, image.height)
    left, top = (image.width - width) / 2, (image.height - height) / 2
    return image.resize((spec.width, spec.height), BICUBIC, box=(left, top, left + width, top + height))


def _pad(image: Image.Image, spec: ImageSpec) -> Image.Image:
    """Padded to a square, then resized, without ever holding the square.

    PIL resizes columns first, then rows, and rounds in between; so the first pass runs over stripes
    of rows and the second over their union, and the result is the same.
    """
    side = max(image.size)
    if side > MAX_STRIP_RATIO * min(image.size):
        image = image.reduce(max(1, side // (STRIP_OVERSAMPLING * spec.width)))
        side = max(image.size)
    left, top = (side - image.width) // 2, (side - image.height) // 2
    narrow = Image.new("RGB", (spec.width, side), spec.pad_color)
    step = max(1, STRIPE_PX // side)
    for y in range(0, image.height, step):
        rows = min(step, image.height - y)
        stripe = Image.new("RGB", (side, rows), spec.pad_color)
        stripe.paste(image.crop((0, y, image.width, y + rows)), (left, 0))
        narrow.paste(stripe.resize((spec.width, rows), BICUBIC), (0, top + y))
    return narrow.resize((spec.width, spec.height), BICUBIC)
