"""The process that opens clients' pictures: a request in, a picture or an error out, until its pipe ends.

Invariant: it answers every request or dies at it, and it dies with its gateway. What comes back holds no
pickle, so that a codec taken over by a hostile picture can say nothing but bytes and words.
Must not know: who asked. Imported in the gateway for `asked` and `answer_of` alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import signal
import socket
import struct
import warnings
from pathlib import Path
from typing import BinaryIO

# The codecs: the fork server has them loaded, where each child would load them with its first picture.
from PIL import (
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    WebPImagePlugin,  # noqa: F401
)

from service.errors import ApiError, TooLarge, UndecodableImage, Unprocessable, UnsupportedMedia
from service.images import ImageLimits, PreparedImage, prepare
from service.protocol import ImageSpec

HEADER = struct.Struct(">II")  # bytes of the JSON, bytes of the body behind it
ERRORS: dict[str, type[ApiError]] = {
    kind.__name__: kind for kind in (TooLarge, UndecodableImage, Unprocessable, UnsupportedMedia)
}
# Where memory runs out the kernel takes the decoder, never the gateway. Not niced: where both share a core,
# the gateway would then stop it for every event by itself instead of taking several at once (docs/log.md).
OOM_SCORE = "900"


def frame(meta: bytes, body: bytes = b"") -> bytes:
    return b"".join((HEADER.pack(len(meta), len(body)), meta, body))


def asked(spec: ImageSpec, limits: ImageLimits, cpu_s: float, data_bytes: int) -> bytes:
    """What stands before the picture. cpu_s: of processor time that it may take; then its process is gone."""
    meta = _meta(spec, limits, cpu_s)
    return HEADER.pack(len(meta), data_bytes) + meta


@functools.lru_cache(maxsize=16)
def _meta(spec: ImageSpec, limits: ImageLimits, cpu_s: float) -> bytes:
    wanted = {"spec": spec.model_dump(), "limits": dataclasses.asdict(limits), "cpu_s": cpu_s}
    return json.dumps(wanted).encode()


@functools.lru_cache(maxsize=16)
def _wanted(meta: bytes) -> tuple[ImageSpec, ImageLimits, float]:
    told = json.loads(meta)
    return ImageSpec.model_validate(told["spec"]), ImageLimits(**told["limits"]), told["cpu_s"]


def answer_of(answer: bytes) -> PreparedImage:
    """Of a whole frame. Raises the error that the child met."""
    meta_bytes, body_bytes = HEADER.unpack_from(answer)
    body = HEADER.size + meta_bytes
    meta = json.loads(answer[HEADER.size : body])
    if "error" in meta:
        raise ERRORS[meta["error"]](meta["message"], param=meta["param"], code=meta["code"])
    return PreparedImage(meta["height"], meta["width"], answer[body : body + body_bytes], meta["sha256"])


def main(pipe: socket.socket) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the gateway's; we go when the pipe ends
    _first_to_go()
    # PIL only warns of a decompression bomb up to twice its limit; here that is a refusal too.
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    with pipe, pipe.makefile("rb") as source, contextlib.suppress(OSError):
        while (request := _read(source)) is not None:
            meta, data = request
            spec, limits, cpu_s = _wanted(meta)
            # Its signal ends the process. Between pictures no processor time passes.
            signal.setitimer(signal.ITIMER_PROF, cpu_s)
            pipe.sendall(_answer(data, spec, limits))


def _first_to_go() -> None:
    with contextlib.suppress(OSError):  # not everywhere, and nothing depends on it
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE)


def _read(source: BinaryIO) -> tuple[bytes, bytes] | None:
    header = source.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    meta_bytes, body_bytes = HEADER.unpack(header)
    return source.read(meta_bytes), source.read(body_bytes)


def _answer(data: bytes, spec: ImageSpec, limits: ImageLimits) -> bytes:
    try:
        picture = prepare(data, spec, limits)
    except ApiError as error:
        told = {"message": error.message, "param": error.param, "code": error.code}
        return frame(json.dumps({"error": type(error).__name__, **told}).encode())
    size = {"height": picture.height, "width": picture.width, "sha256": picture.sha256}
    return frame(json.dumps(size).encode(), picture.rgb)
