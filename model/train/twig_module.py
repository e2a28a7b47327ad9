"""The twig as it is trained: T layers of the base's own class, a norm and a head, by the published names."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from model.train.reading import Reading, looks, through

Start = Literal["base", "random"]


class Twig(nn.Module):
    """State-dict names are the published format's: model.layers.*, model.norm, lm_head.

    start: as base layers K..K+T-1 with the base's norm and head, or (for comparison) with random layers.
    """

    def __init__(self, vlm: Any, fork_layer: int, twig_layers: int, start: Start = "base") -> None:
        super().__init__()
        text = vlm.model.language_model
        if not 1 <= twig_layers <= len(text.layers) - fork_layer:
            raise ValueError(
                f"twig_layers must lie in 1..{len(text.layers) - fork_layer} behind fork_layer "
                f"{fork_layer}, not {twig_layers}"
            )
        self.model = nn.Module()
        self.model.layers = nn.ModuleList(
            copy.deepcopy(text.layers[fork_layer + i]) for i in range(twig_layers)
        )
        self.model.norm = copy.deepcopy(text.norm)
        self.lm_head = copy.deepcopy(vlm.lm_head)
        if start == "random":
            self._forget()
        self.requires_grad_(True)

    @torch.no_grad()
    def _forget(self) -> None:
        """Random layers of the spread that the base's own have."""
        for weight in self.model.layers.parameters():
            if weight.ndim >= 2:
                weight.normal_(std=float(weight.std()))

    def forward(self, reading: Reading, look: bool) -> tuple[Tensor, list[Tensor]]:
        """Logits [A, vocabulary] where answers are predicted; if asked the looks of last prompt tokens.

        The looks are what ranks the visual tokens: the last layer's attention, mean over heads, for each
        sequence float32 [its turns, N].
        """
        *lower, last = self.model.layers
        hidden = through(lower, reading.hidden, reading.inputs)
        ranks = looks(last, hidden, reading, reading.prompt_ends) if look else []
        hidden = last(hidden, **reading.inputs)
        return self.lm_head(self.model.norm(hidden.flatten(0, 1)[reading.target_at])), ranks
