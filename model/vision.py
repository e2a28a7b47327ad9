"""Pictures to features, those of several prompts at once, and each picture once.

Also remembers what a prompt up to its last picture leaves in trunk and twig (a prefix): that does not depend
on the question behind it, so a second question about a picture skips the tower and most of the prefill.
Invariant: a key says all that its value depends on: the pictures' bytes, and a prefix's tokens.
Knows the adapter and prompts, not layers or slots.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.adapters.base import Adapter, Pixels
from model.generation import Prompt
from model.reuse import Reuse


@dataclass(frozen=True)
class Prefix:
    """A prompt's first tokens, up to its last visual one. states: the trunk's, [tokens, hidden].

    rows: [layers, 2 * kv_heads, tokens, head_dim], what trunk and twig keep of them.
    """

    states: Tensor
    rows: Tensor

    @property
    def tokens(self) -> int:
        return self.rows.shape[2]

    @property
    def nbytes(self) -> int:
        return self.states.nbytes + self.rows.nbytes


@dataclass(frozen=True)
class Sight:
    """What a prefill needs of a prompt's pictures: their features [sum of M, hidden], or the whole prefix.

    prefix_key: under which the prefix may be kept; None where there is none to keep.
    """

    features: Tensor | None = None
    prefix: Prefix | None = None
    prefix_key: bytes | None = None


class Vision:
    """keeps_prefixes: False where no layer reads a prompt before it is pruned.

    together: prompts share passes of the tower; the last bits of a picture's features hang on its company.
    """

    def __init__(self, adapter: Adapter, limit_bytes: int, keeps_prefixes: bool, *, together: bool) -> None:
        self.adapter, self._keeps_prefixes = adapter, keeps_prefixes and limit_bytes > 0
        self.together = together
        # Prefixes are ten times as heavy, and features are of use to any prompt.
        self.features: Reuse[Tensor] = Reuse(limit_bytes // 8)
        self.prefixes: Reuse[Prefix] = Reuse(limit_bytes - limit_bytes // 8)

    def look(self, prompt: Prompt) -> Sight:
        return self.look_at_all([prompt])[0]

    def look_at_all(self, prompts: Sequence[Prompt]) -> list[Sight]:
        """Raises what the tower raises, for whichever prompt it is."""
        pictures = [picture_key(prompt) if prompt.visual else b"" for prompt in prompts]
        sights: list[Sight | None] = [
            Sight() if not prompt.visual else self._known(prompt, key)
            for prompt, key in zip(prompts, pictures, strict=True)
        ]
        unseen = {
            key: prompt for key, prompt, sight in zip(pictures, prompts, sights, strict=True) if not sight
        }
        fresh = self._encode(list(unseen.values()))
        seen = dict(zip(unseen, fresh, strict=True))
        for key, features in seen.items():
            self.features.put(key, features, features.nbytes)
        return [
            sight or Sight(seen[key], None, self._prefix_key(prompt, key))
            for prompt, key, sight in zip(prompts, pictures, sights, strict=True)
        ]

    def keep(self, key: bytes, prefix: Prefix) -> None:
        self.prefixes.put(key, prefix, prefix.nbytes)

    def _known(self, prompt: Prompt, key: bytes) -> Sight | None:
        prefix_key = self._prefix_key(prompt, key)
        if prefix_key is not None and (prefix := self.prefixes.get(prefix_key)) is not None:
            return Sight(None, prefix, prefix_key)
        features = self.features.get(key)
        return None if features is None else Sight(features, None, prefix_key)

    def _prefix_key(self, prompt: Prompt, picture: bytes) -> bytes | None:
        end = prompt.visual[-1] + 1
        if not self._keeps_prefixes or end == len(prompt.token_ids):
            return None
        twig_reads = prompt.speculate or prompt.pruned
        tokens = array("q", prompt.token_ids[:end]).tobytes()
        return hashlib.sha256(picture + bytes([twig_reads]) + tokens).digest()

    def _encode(self, prompts: Sequence[Prompt]) -> list[Tensor]:
        """One pass of the tower for each prompt, or for all that have the same shape."""
        pixels = [self._pixels(prompt) for prompt in prompts]
        alike: dict[tuple[object, ...], list[int]] = defaultdict(list)
        for index, one in enumerate(pixels):
            company = 0 if self.together else index
            alike[(company, one.values.dtype, *one.values.shape[1:])].append(index)
        features: dict[int, Tensor] = {}
        for indices in alike.values():
            counts = [len(prompts[index].visual) for index in indices]
            parts = self._pass([pixels[index] for index in indices], counts)
            features |= dict(zip(indices, parts, strict=True))
        return [features[index] for index in range(len(prompts))]

    def _pixels(self, prompt: Prompt) -> Pixels:
        return prompt.pixels or self.adapter.prepare_images(prompt.images)

    def _pass(self, pixels: Sequence[Pixels], counts: Sequence[int]) -> list[Tensor]:
        values = pixels[0].values if len(pixels) == 1 else torch.cat([one.values for one in pixels])
        features = self.adapter.encode_images(Pixels(values, sum((one.sizes for one in pixels), ())))
        if features.shape[0] != sum(counts):
            raise RuntimeError(f"the tower gave {features.shape[0]} features for {sum(counts)} positions")
        if not torch.isfinite(features).all():
            # They would stay in the cache, and a masked NaN still is one to the next owner of the slot.
            raise ValueError("the tower makes features of these pixel values that are not all finite")
        # Copies where there are several: a part must not hold the memory of all.
        return [part.clone() if len(counts) > 1 else part for part in features.split(list(counts))]


def picture_key(prompt: Prompt) -> bytes:
    """Of the pictures' own bytes, whether prepared or not."""
    digest = hashlib.sha256()
    if prompt.pixels is not None:
        values = prompt.pixels.values.contiguous()
        digest.update(repr((prompt.pixels.sizes, values.shape, values.dtype)).encode())
        digest.update(values.view(torch.uint8).numpy().data)
    for image in prompt.images:
        _add_picture(digest, image)
    return digest.digest()


def _add_picture(digest: Any, image: Any) -> None:
    """A PIL image (with its palette, if it has one) or an array."""
    if hasattr(image, "tobytes") and hasattr(image, "mode"):
        palette = image.getpalette() if image.mode in ("P", "PA") else None
        digest.update(repr((image.mode, image.size, palette, image.info.get("transparency"))).encode())
        digest.update(image.tobytes())
    else:
        pixels = np.ascontiguousarray(image)
        digest.update(repr((pixels.shape, pixels.dtype.str)).encode())
        digest.update(pixels.data)
