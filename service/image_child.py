"""The process that opens clients' pictures: a request in, a picture or an error out, until its pipe ends.

Invariant: it answers every request or dies at it, and it dies with its gateway. What comes back holds no
pickle, so that a codec taken over by a hostile picture can say nothing but bytes and words.
Must not know: who asked. Imported in the gateway for `ask` and `answer_of` alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import struct
import warnings
from pathlib import Path
from typing import Any, BinaryIO

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
# Where memory runs out the kernel takes the decoder, never the gateway.
OOM_SCORE = "900"
# The gateway's event loop goes first where both want the same core.
NICENESS = 5


def frame(meta: dict[str, Any], body: bytes = b"") -> bytes:
    text = json.dumps(meta).encode()
    return b"".join((HEADER.pack(len(text), len(body)), text, body))


def ask(data: bytes, spec: ImageSpec, limits: ImageLimits, cpu_s: float) -> bytes:
    """cpu_s: of processor time that the picture may take; then its process is gone."""
    return frame({"spec": spec.model_dump(), "limits": dataclasses.asdict(limits), "cpu_s": cpu_s}, data)


def answer_of(meta: dict[str, Any], rgb: bytes) -> PreparedImage:
    """Raises the error that the child met."""
    if "error" in meta:
        raise ERRORS[meta["error"]](meta["message"], param=meta["param"], code=meta["code"])
    return PreparedImage(meta["height"], meta["width"], rgb, meta["sha256"])


def main(pipe: socket.socket) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the gateway's; we go when the pipe ends
    _step_back()
    # PIL only warns of a decompression bomb up to twice its limit; here that is a refusal too.
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    with pipe, pipe.makefile("rb") as source, contextlib.suppress(OSError):
        while (request := _read(source)) is not None:
            signal.setitimer(signal.ITIMER_PROF, request[0]["cpu_s"])  # whose signal ends the process
            answer = _answer(*request)
            signal.setitimer(signal.ITIMER_PROF, 0)
            pipe.sendall(answer)


def _step_back() -> None:
    with contextlib.suppress(OSError, AttributeError):  # not everywhere, and nothing depends on it
        os.nice(NICENESS)
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE)


def _read(source: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    header = source.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    meta_bytes, body_bytes = HEADER.unpack(header)
    return json.loads(source.read(meta_bytes)), source.read(body_bytes)


def _answer(meta: dict[str, Any], data: bytes) -> bytes:
    try:
        picture = prepare(data, ImageSpec.model_validate(meta["spec"]), ImageLimits(**meta["limits"]))
    except ApiError as error:
        told = {"message": error.message, "param": error.param, "code": error.code}
        return frame({"error": type(error).__name__, **told})
    size = {"height": picture.height, "width": picture.width, "sha256": picture.sha256}
    return frame(size, picture.rgb)
