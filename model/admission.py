"""Checks a request and turns it into a prompt: everything that can be refused is refused here. No torch.

Invariant: what passes can run; what cannot raises a RequestError that names the field and its limit.
Knows a family's prompt format only through the adapter; runs nothing on the device.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Real
from operator import index
from typing import TYPE_CHECKING, Any

from model.config import TwigConfig
from model.generation import Prompt
from model.limits import Limits
from model.memory import ByGroup, KvBudget, kv_tokens
from model.pruning import kept_budget, retained_average, share_of
from model.randomness import MAX_SEED
from model.request import Request, RequestError, SamplingParams

# What one answer can be searched for without slowing a round down.
MAX_STOPS = 16
MAX_STOP_CHARS = 256

if TYPE_CHECKING:
    from model.adapters.base import Adapter, Footprint, Pixels


def _is_int(value: Any, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _are_stops(stops: Any) -> bool:
    # A lone string is a sequence of strings as well: of its characters.
    if not isinstance(stops, list | tuple) or len(stops) > MAX_STOPS:
        return False
    return all(isinstance(stop, str) and 1 <= len(stop) <= MAX_STOP_CHARS for stop in stops)


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


class Admission:
    def __init__(
        self, adapter: Adapter, twig: TwigConfig | None, layers: int, limits: Limits, memory: KvBudget
    ) -> None:
        self.adapter, self.twig, self.layers, self.limits = adapter, twig, layers, limits
        self.memory = memory

    def prompt(self, request: Request) -> Prompt:
        check_sampling(request.sampling)
        if request.sampling.stop and self.adapter.decode is None:
            raise RequestError("stop needs a checkpoint with a tokenizer", param="stop")
        pixels, footprints = self._pictures(request)
        token_ids = self._expand(self._token_ids(request, len(footprints)), footprints)
        self._check_length(token_ids, request.sampling.max_tokens)
        resumed = self._ids(request.resume_token_ids, "resume_token_ids")
        visual = [i for i, token in enumerate(token_ids) if token == self.adapter.image_token_id]
        kept, average = self._budget(request, len(visual), len(footprints))
        return Prompt(
            token_ids=token_ids,
            visual=visual,
            kept_tokens=kept,
            pruned=average < len(visual),
            retained_average=average,
            speculate=request.speculation and self.twig is not None and self.limits.draft_tokens > 0,
            kv=self._reserve(token_ids, visual, kept, request.sampling.max_tokens),
            resume_token_ids=tuple(resumed),
            grids=tuple(footprint.grid for footprint in footprints),
            pixels=pixels,
            images=tuple(request.images),
            positions=self.adapter.positions(token_ids, footprints),
        )

    def _pictures(self, request: Request) -> tuple[Pixels | None, list[Footprint]]:
        if request.pixel_values is not None:
            if request.images:
                raise RequestError("give images or pixel_values, not both", param="pixel_values")
            pixels = self.adapter.take_pixels(request.pixel_values)
            self._within_limit(len(pixels.sizes), "pixel_values")
            return pixels, self.adapter.footprints(pixels)
        if not isinstance(request.images, list | tuple):
            raise RequestError(f"images must be a list, not {type(request.images).__name__}", param="images")
        self._within_limit(len(request.images), "images")
        for number, image in enumerate(request.images):
            if not _is_picture(image):
                raise RequestError(
                    f"image {number} is neither a PIL image nor uint8 [H, W, 3]", param="images"
                )
        return None, self.adapter.footprints(request.images)

    def _within_limit(self, images: int, param: str) -> None:
        if images > self.limits.max_images:
            raise RequestError(
                f"{images} images given, at most {self.limits.max_images} are allowed", param=param
            )

    def _token_ids(self, request: Request, images: int) -> list[int]:
        if request.prompt_token_ids is None:
            if not isinstance(request.prompt, str):
                raise RequestError(f"prompt must be text, not {request.prompt!r}", param="prompt")
            return self.adapter.prompt_token_ids(request.prompt, images, request.history)
        ids = self._ids(request.prompt_token_ids, "prompt_token_ids")
        if not ids:
            raise RequestError("prompt_token_ids is empty", param="prompt_token_ids")
        return ids

    def _ids(self, ids: Iterable[Any], param: str) -> list[int]:
        """Of any flat sequence of whole numbers, arrays and tensors too."""
        vocabulary = self.adapter.shape.vocabulary
        try:
            whole = [index(token) for token in ids]
        except TypeError as error:
            raise RequestError(f"{param} must be a flat sequence of token ids", param=param) from error
        for token in whole:
            if not 0 <= token < vocabulary:
                raise RequestError(f"token id {token} is not in the vocabulary of {vocabulary}", param=param)
        return whole

    def _expand(self, token_ids: list[int], footprints: Sequence[Footprint]) -> list[int]:
        """One placeholder an image becomes its M of them; a prompt already expanded passes."""
        placeholder, per_image = self.adapter.image_token_id, [footprint.tokens for footprint in footprints]
        found, images = token_ids.count(placeholder), len(footprints)
        if found == sum(per_image):
            return token_ids
        if found != images:
            expanded = ", ".join(map(str, per_image)) or "none"
            raise RequestError(
                f"{images} images given, but the prompt holds {found} image placeholders "
                f"(one an image, or if already expanded as many as its tokens: {expanded})",
                param="images",
            )
        counts = iter(per_image)
        return [t for token in token_ids for t in [token] * (next(counts) if token == placeholder else 1)]

    def _check_length(self, token_ids: list[int], max_tokens: int) -> None:
        length, limit = len(token_ids), self.limits.max_model_len
        if length >= limit:
            raise RequestError(
                f"the prompt has {length} tokens, the model takes {limit} in all", param="prompt"
            )
        if length + max_tokens > limit:
            raise RequestError(
                f"the prompt has {length} tokens and max_tokens is {max_tokens}, but the model takes {limit} "
                f"in all: max_tokens can be at most {limit - length}",
                param="max_tokens",
            )

    def _reserve(self, token_ids: list[int], visual: list[int], kept: int, max_tokens: int) -> ByGroup:
        """The cache tokens of the whole sequence; refused where they could not fit alone."""
        images, text = len(visual), len(token_ids) - len(visual)
        if visual and visual[-1] == len(token_ids) - 1:
            text += 1  # it predicts, so it stays in all layers
        tokens = kv_tokens(text, images, kept, max_tokens)
        if self.memory.fits_alone(tokens):
            return tokens
        shortest = kv_tokens(text, images, kept, max_tokens=1)
        raise RequestError(
            f"a prompt of {len(token_ids)} tokens ({kept} of {images} visual ones kept) and max_tokens "
            f"{max_tokens} need {self.memory.least_bytes(tokens)} bytes of KV cache, "
            f"but there are {self.memory.limit_bytes}",
            param="max_tokens" if self.memory.fits_alone(shortest) else "prompt",
        )

    def _budget(self, request: Request, image_tokens: int, images: int) -> tuple[int, float]:
        """R' and the average over all layers that it gives; both M where nothing is pruned."""
        self._check_retained(request)
        everything = image_tokens, float(image_tokens)
        retained = request.retained_tokens
        if self.twig is None:
            if retained is not None and not 0 <= retained <= image_tokens:
                raise RequestError(
                    f"retained_tokens {retained} does not lie in 0..{image_tokens}", param="retained_tokens"
                )
            return everything
        fork, drop = self.twig.fork_layer, self.twig.drop_layer
        if request.retained_share is not None:
            retained = share_of(request.retained_share, self.layers, image_tokens, fork, drop)
        elif retained is None:
            default = self.limits.default_retained
            # Where M differs from image to image there is no other default.
            retained = image_tokens if default == self.adapter.image_tokens else default * images
        if retained == image_tokens:
            return everything
        kept = kept_budget(retained, self.layers, image_tokens, fork, drop)
        return kept, retained_average(kept, self.layers, image_tokens, fork, drop)

    def _check_retained(self, request: Request) -> None:
        retained, share = request.retained_tokens, request.retained_share
        if retained is not None and (not isinstance(retained, int) or isinstance(retained, bool)):
            raise RequestError(
                f"retained_tokens must be a whole number, not {retained!r}", param="retained_tokens"
            )
        if share is None:
            return
        if retained is not None:
            raise RequestError("give retained_tokens or retained_share, not both", param="retained_share")
        if not 0 < share <= 1:
            raise RequestError(f"retained_share must lie in (0, 1] (got {share!r})", param="retained_share")


def _is_picture(image: Any) -> bool:
    if hasattr(image, "convert"):  # PIL
        return True
    shape: tuple[int, ...] = getattr(image, "shape", ())
    return (
        len(shape) == 3 and shape[2] == 3 and 0 not in shape and str(getattr(image, "dtype", "")) == "uint8"
    )
