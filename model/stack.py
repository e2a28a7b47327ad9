"""Consecutive decoder layers over one cache group: what the runner calls, and torch's way of doing it.

Invariant: a call writes the new tokens' keys and values into the cache and moves no length.
Knows slots and lengths, not requests; `model.native.stack` does the same in native code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from model.cache import LayerGroup, Offsets
from model.decoder import DecoderLayer


class Stack(Protocol):
    """depth: how many layers; without any a call gives its input back."""

    depth: int

    def __call__(
        self, x: Tensor, cis: Tensor, slots: Sequence[int], widths: Sequence[int], offsets: Offsets = 0
    ) -> Tensor:
        """x: [sum of widths, hidden], the slots' new tokens one slot after the other; cis: their angles.

        offsets: how far behind its length each slot's new tokens begin (before it where negative).
        """
        ...

    def fill(self, x: Tensor, cis: Tensor, slot: int) -> None:
        """The same for one slot where nobody wants the output."""
        ...

    def fill_scored(self, x: Tensor, cis: Tensor, slot: int) -> Tensor:
        """Also the last layer's attention of the last row, mean over heads: float32 [tokens in the slot]."""
        ...

    def part(self, depth: int, group: LayerGroup) -> Stack:
        """The first `depth` of the same layers, over another group."""
        ...


class LogitHead(Protocol):
    """Final norm and LM head over rows [n, hidden]."""

    def __call__(self, x: Tensor) -> Tensor: ...

    def choose(self, x: Tensor) -> list[int]: ...

    def propose(self, x: Tensor) -> tuple[list[int], list[float]]: ...


class TorchStack:
    """first: the group's layer that holds the keys and values of the first of these."""

    def __init__(self, layers: Sequence[DecoderLayer], group: LayerGroup, first: int = 0) -> None:
        self.layers, self.group, self.first = list(layers), group, first
        self.depth = len(self.layers)

    def __call__(
        self, x: Tensor, cis: Tensor, slots: Sequence[int], widths: Sequence[int], offsets: Offsets = 0
    ) -> Tensor:
        if not self.layers:
            return x
        window = self.group.window(slots, widths, offsets)
        for layer, decoder in enumerate(self.layers, self.first):
            x = decoder(x, cis, window, layer)
        return x

    def fill(self, x: Tensor, cis: Tensor, slot: int) -> None:
        if not self.layers or not x.shape[0]:
            return
        window = self.group.window([slot], [x.shape[0]])
        *lower, last = self.layers
        for layer, decoder in enumerate(lower, self.first):
            x = decoder(x, cis, window, layer)
        last.write_keys(x, cis, window, self.first + len(lower))

    def fill_scored(self, x: Tensor, cis: Tensor, slot: int) -> Tensor:
        window = self.group.window([slot], [x.shape[0]])
        *lower, last = self.layers
        for layer, decoder in enumerate(lower, self.first):
            x = decoder(x, cis, window, layer)
        last_layer = self.first + len(lower)
        last.write_keys(x, cis, window, last_layer)
        return last.attention_of_last(x, cis, window, last_layer)

    def part(self, depth: int, group: LayerGroup) -> Stack:
        return TorchStack(self.layers[:depth], group)
