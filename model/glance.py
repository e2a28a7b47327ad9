"""What a prompt can show to a scorer, on the device: attention of twig and base, saliency in the tower.

Invariant: nothing here touches the engine's cache; what a base layer would have seen is computed aside.
Source of the base's attention as a score: FastV (arXiv 2403.06764); of [CLS]'s: FasterVLM (arXiv 2412.01818).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from torch import Tensor

from model.cache import LayerGroup
from model.generation import Prompt
from model.scorers import Scores
from model.vision import picture_key
from model.vlm import SplitVlm


@dataclass(frozen=True)
class Glance:
    """See `model.scorers.PromptView`.

    states, angles: [P, hidden] that leave the trunk, and their rotary angles. attention: [P], the twig's.
    """

    vlm: SplitVlm
    prompt: Prompt
    states: Tensor
    angles: Tensor
    attention: Tensor

    @property
    def fork_layer(self) -> int:
        return self.vlm.trunk.depth

    @property
    def twig_layers(self) -> int:
        return self.vlm.twig.depth

    @property
    def grids(self) -> list[tuple[int, int]]:
        grids = [grid for grid in self.prompt.grids if grid is not None]
        if len(grids) < len(self.prompt.grids):
            raise ValueError("this scorer needs images whose visual tokens are one grid")
        return grids

    @property
    def seed(self) -> int:
        return int.from_bytes(picture_key(self.prompt)[:8])

    @property
    def key(self) -> int:
        return zlib.crc32(self.states.float().cpu().numpy().tobytes())

    def _visual(self) -> Tensor:
        return self.vlm.tensor(self.prompt.visual)

    def twig_attention(self) -> Scores:
        return self._of_visual(self.attention)

    def base_attention(self, layer: int) -> Scores:
        vlm, x, depth = self.vlm, self.states, layer + 1 - self.fork_layer
        stack, above = vlm.middle, depth - vlm.middle.depth
        if above > vlm.top.depth:
            raise ValueError(f"the base has no layer {layer} to rank by")
        if above > 0:
            x = stack.part(stack.depth, self._aside(stack.depth))(x, self.angles, [0], [x.shape[0]])
            stack, depth = vlm.top, above
        return self._of_visual(stack.part(depth, self._aside(depth)).fill_scored(x, self.angles, 0))

    def _aside(self, layers: int) -> LayerGroup:
        shape, slab = self.vlm.shape, self.vlm.cache.full.slab
        return LayerGroup(layers, 1, shape.kv_heads, shape.head_dim, slab.dtype, slab.device)

    def saliency(self) -> Scores:
        look = getattr(self.vlm.adapter, "saliency", None)
        if look is None:
            raise ValueError(f"family {self.vlm.adapter.family!r} has no [CLS] attention to rank by")
        adapter, prompt = self.vlm.adapter, self.prompt
        pixels = prompt.pixels if prompt.pixels is not None else adapter.prepare_images(prompt.images)
        scores: list[float] = look(pixels).tolist()
        return scores

    def _of_visual(self, attention: Tensor) -> Scores:
        scores: list[float] = attention[self._visual()].tolist()
        return scores
