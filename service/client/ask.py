"""What a caller asks, as the JSON body of `POST /v1/describe`.

Invariant: every picture is read once, so that a request can be sent again.
Must not know: HTTP. The service checks the fields, nobody here does.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypedDict

# A path, the bytes of a file, or an open file.
Picture = str | os.PathLike[str] | bytes | BinaryIO


class Options(TypedDict, total=False):
    """The fields of `POST /v1/describe`; what is left out is the service's default."""

    prompt: str
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int
    stop: str | Sequence[str]
    quality: str
    retained_tokens: int
    speculation: bool
    include: Literal["token_map"]
    service_tier: Literal["auto", "default", "flex"]


def body(pictures: Picture | Sequence[Picture], options: Options) -> dict[str, Any]:
    several = pictures if isinstance(pictures, list | tuple) else [pictures]
    images = [base64.b64encode(_read(picture)).decode() for picture in several]
    return {"image": images, **options}


def _read(picture: Any) -> bytes:
    if isinstance(picture, bytes | bytearray | memoryview):
        return bytes(picture)
    if isinstance(picture, str | os.PathLike):
        return Path(picture).read_bytes()
    return bytes(picture.read())
