"""Whether the fields of a request are of their kind, before anything is made of them. No torch.

Invariant: what is not raises a RequestError that names the field, and no other error.
Knows no checkpoint and no limit of an engine.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

from PIL import Image

from model.randomness import MAX_SEED
from model.request import Request, RequestError, SamplingParams, Turn

# What one answer can be searched for without slowing a round down.
MAX_STOPS = 16
MAX_STOP_CHARS = 256


def _is_int(value: Any, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    """Half a surrogate pair is a character of Python's, but of no encoding, and of no tokenizer."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _are_stops(stops: Any) -> bool:
    # A lone string is a sequence of strings as well: of its characters.
    if not isinstance(stops, list | tuple) or len(stops) > MAX_STOPS:
        return False
    return all(_is_text(stop) and 1 <= len(stop) <= MAX_STOP_CHARS for stop in stops)


def _is_picture(image: Any) -> bool:
    if isinstance(image, Image.Image):
        return 0 not in image.size
    shape: tuple[int, ...] = getattr(image, "shape", ())
    return (
        len(shape) == 3 and shape[2] == 3 and 0 not in shape and str(getattr(image, "dtype", "")) == "uint8"
    )


def _is_turn(turn: Any) -> bool:
    if not isinstance(turn, Turn) or turn.role not in ("user", "assistant"):
        return False
    return _is_text(turn.text) and _is_int(turn.images, 0)


def check_request(request: Request) -> None:
    if not isinstance(request.sampling, SamplingParams):
        raise RequestError(f"sampling must be SamplingParams, not {request.sampling!r}", param="sampling")
    check_sampling(request.sampling)
    name = request.request_id
    if name is not None and not (_is_text(name) and name):
        raise RequestError(f"request_id must be None or text (got {name!r})", param="request_id")
    if request.prompt_token_ids is None and not _is_text(request.prompt):
        raise RequestError(f"prompt must be text (got {request.prompt!r})", param="prompt")
    _check_history(request)
    _check_retained(request)
    if not isinstance(request.images, list | tuple):
        raise RequestError(f"images must be a list, not {type(request.images).__name__}", param="images")
    for number, image in enumerate(request.images):
        if not _is_picture(image):
            raise RequestError(
                f"image {number} is neither a PIL image nor uint8 [H, W, 3], or it is empty", param="images"
            )


def _check_history(request: Request) -> None:
    history = request.history
    if not isinstance(history, list | tuple) or not all(map(_is_turn, history)):
        raise RequestError(
            "history must be a sequence of Turn: role user or assistant, text, and how many images",
            param="history",
        )
    if history and request.prompt_token_ids is not None:
        raise RequestError("prompt_token_ids hold the whole prompt: no history beside them", param="history")


def _check_retained(request: Request) -> None:
    retained, share = request.retained_tokens, request.retained_share
    if retained is not None and (not isinstance(retained, int) or isinstance(retained, bool)):
        raise RequestError(
            f"retained_tokens must be a whole number, not {retained!r}", param="retained_tokens"
        )
    if share is None:
        return
    if retained is not None:
        raise RequestError("give retained_tokens or retained_share, not both", param="retained_share")
    if not _is_number(share) or not 0 < share <= 1:
        raise RequestError(f"retained_share must lie in (0, 1] (got {share!r})", param="retained_share")


def check_sampling(sampling: SamplingParams) -> None:
    """Under temperature 0 top_p, top_k and seed have no effect, as everywhere."""
    checks = (
        ("max_tokens", _is_int(sampling.max_tokens, 1), "must be an integer of at least 1"),
        (
            "temperature",
            _is_number(sampling.temperature) and 0 <= sampling.temperature < math.inf,
            "must be a finite number and not negative",
        ),
        ("top_p", _is_number(sampling.top_p) and 0 < sampling.top_p <= 1, "must be a number in (0, 1]"),
        ("top_k", _is_int(sampling.top_k, 0), "must be an integer of at least 0"),
        (
            "seed",
            sampling.seed is None or (_is_int(sampling.seed, 0) and sampling.seed <= MAX_SEED),
            f"must be None or an integer in 0..{MAX_SEED}",
        ),
        (
            "stop",
            _are_stops(sampling.stop),
            f"must be at most {MAX_STOPS} strings of 1 to {MAX_STOP_CHARS} characters",
        ),
    )
    for name, good, rule in checks:
        if not good:
            raise RequestError(f"{name} {rule} (got {getattr(sampling, name)!r})", param=name)
