"""Checks a request and turns it into a prompt: everything that can be refused is refused here. No torch.

Invariant: what passes can run; what cannot raises a RequestError that names the field and its limit.
Knows a family's prompt format only through the adapter; runs nothing on the device.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from operator import index
from typing import TYPE_CHECKING, Any

from model.checks import check_request
from model.config import TwigConfig
from model.generation import Prompt
from model.limits import Limits
from model.memory import ByGroup, KvBudget, kv_tokens
from model.pruning import kept_budget, nearest_legal, retained_average, share_of
from model.request import Request, RequestError

if TYPE_CHECKING:
    from model.adapters.base import Adapter, Footprint, Pixels


class Admission:
    def __init__(
        self, adapter: Adapter, twig: TwigConfig | None, layers: int, limits: Limits, memory: KvBudget
    ) -> None:
        self.adapter, self.twig, self.layers, self.limits = adapter, twig, layers, limits
        self.memory = memory

    def prompt(self, request: Request) -> Prompt:
        check_request(request)
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

    def prompt_so_far(self, request: Request) -> Prompt:
        """For what follows resume_token_ids: with memory for all of them, however small max_tokens is."""
        prompt = self.prompt(request)
        resumed = len(prompt.resume_token_ids)
        length, limit = len(prompt.token_ids) + resumed, self.limits.max_model_len
        if length > limit:
            told = f"prompt and answer so far have {length} tokens, the model takes {limit}"
            raise RequestError(told, param="resume_token_ids")
        kv = prompt.kv.longer(max(0, resumed + 1 - request.sampling.max_tokens))
        if not self.memory.fits_alone(kv):
            told = f"prompt and answer so far need {self.memory.least_bytes(kv)} bytes of KV cache, "
            raise RequestError(f"{told}but there are {self.memory.limit_bytes}", param="resume_token_ids")
        return replace(prompt, kv=kv)

    def _pictures(self, request: Request) -> tuple[Pixels | None, list[Footprint]]:
        if request.pixel_values is not None:
            if request.images:
                raise RequestError("give images or pixel_values, not both", param="pixel_values")
            pixels = self.adapter.take_pixels(request.pixel_values)
            self._within_limit(len(pixels.sizes), "pixel_values")
            return pixels, self.adapter.footprints(pixels)
        self._within_limit(len(request.images), "images")
        return None, self.adapter.footprints(request.images)

    def _within_limit(self, images: int, param: str) -> None:
        if images > self.limits.max_images:
            raise RequestError(
                f"{images} images given, at most {self.limits.max_images} are allowed", param=param
            )

    def _token_ids(self, request: Request, images: int) -> list[int]:
        if request.prompt_token_ids is None:
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
        everything = image_tokens, float(image_tokens)
        retained = request.retained_tokens
        if self.twig is None:
            if retained is not None and not 0 <= retained <= image_tokens:
                raise RequestError(
                    f"retained_tokens {retained} does not lie in 0..{image_tokens}", param="retained_tokens"
                )
            return everything
        shape = self.layers, image_tokens, self.twig.fork_layer, self.twig.drop_layer
        if request.retained_share is not None:
            retained = share_of(request.retained_share, *shape)
        elif retained is None:
            default = self.limits.default_retained
            # Where M differs from image to image there is no other default. One that is legal for an image
            # may be a little too small for several: R' is rounded up once, not once an image.
            whole = default == self.adapter.image_tokens
            retained = nearest_legal(image_tokens if whole else default * images, *shape)
        if retained == image_tokens:
            return everything
        kept = kept_budget(retained, *shape)
        return kept, retained_average(kept, *shape)
