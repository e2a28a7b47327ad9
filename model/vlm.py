"""A base and its twig cut into stacks over their cache groups, on one device: what runs, not when.

Trunk = base layers 0..K-1, middle = K..F-1, top = F..L-1; without a twig all layers are middle.
Knows layers, the cache and positions; prompts, rounds and drafts are elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from model.adapters.base import Adapter, Positions
from model.cache import Cache, LayerGroup
from model.decoder import DecoderLayer, Head
from model.native.drafting import NativeDrafter
from model.native.library import Library, load_library
from model.native.stack import NativeHead, NativeStack, supports
from model.stack import LogitHead, Stack, TorchStack
from model.twig import Twig


class SplitVlm:
    """kernels: "auto" takes native code where it runs, "torch" never."""

    def __init__(
        self,
        adapter: Adapter,
        twig: Twig | None,
        *,
        slots: int,
        max_model_len: int,
        kernels: str,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.adapter, self.device, self.shape = adapter, device, adapter.shape
        self.rope = adapter.rope(max_model_len)
        layers, shape = adapter.layers, adapter.shape
        fork, drop = (twig.config.fork_layer, twig.config.drop_layer) if twig else (0, len(layers))
        twig_layers = twig.layers if twig else []

        def group(depth: int) -> LayerGroup:
            return LayerGroup(depth, slots, shape.kv_heads, shape.head_dim, dtype, device)

        full, kept = group(fork + len(twig_layers)), group(drop - fork)
        self.cache = Cache(full, kept, group(len(layers) - drop))
        usable = kernels != "torch" and supports(shape, dtype, device)
        self._library: Library | None = load_library() if usable else None
        self.trunk = self._stack(layers[:fork], full)
        self.twig = self._stack(twig_layers, full, fork)
        self.middle = self._stack(layers[fork:drop], kept)
        self.top = self._stack(layers[drop:], self.cache.text)
        self.head = self._head(adapter.head)
        self.twig_head = None if twig is None else self._head(twig.head, drafts_only=True)
        self.drafter = self._drafter()

    @property
    def kernels(self) -> str:
        return "torch" if self._library is None else "native"

    def _stack(self, layers: Sequence[DecoderLayer], group: LayerGroup, first: int = 0) -> Stack:
        if self._library is None:
            return TorchStack(layers, group, first)
        return NativeStack(self._library, layers, self.shape, group, first)

    def _head(self, head: Head, *, drafts_only: bool = False) -> LogitHead:
        if self._library is None:
            return head
        return NativeHead(self._library, head, self.shape.norm_eps, drafts_only=drafts_only)

    def _drafter(self) -> NativeDrafter | None:
        parts = self.trunk, self.twig, self.twig_head
        match parts:
            case NativeStack() as trunk, NativeStack() as twig, NativeHead() as head:
                return NativeDrafter(trunk, twig, head, self.adapter.embedding, self.rope)
        return None

    def embed(self, tokens: Sequence[int], vectors: Mapping[int, Tensor | None]) -> Tensor:
        """[n, hidden]; in rows for which a vector is given that stands for the token."""
        x = F.embedding(self.tensor(tokens), self.adapter.embedding)
        for row, vector in vectors.items():
            if vector is not None:
                x[row : row + 1] = vector
        return x

    def angles(self, positions: Sequence[int]) -> Tensor:
        first, count = positions[0] if positions else 0, len(positions)
        if count == 1 or list(positions) == list(range(first, first + count)):
            return self.rope[first : first + count]
        return self.rope[self.tensor(positions)]

    def prompt_angles(self, positions: Positions | None, length: int) -> Tensor:
        """[length, 1, head_dim / 2], complex."""
        if positions is None:
            return self.rope[:length]
        return self.rope.squeeze(1).gather(0, positions.pairs.to(self.device)).unsqueeze(1)

    def base(
        self, x: Tensor, positions: Sequence[int], slots: Sequence[int], widths: Sequence[int]
    ) -> Tensor:
        """Middle and top layers over new tokens of the slots."""
        cis = self.angles(positions)
        return self.top(self.middle(x, cis, slots, widths), cis, slots, widths)

    def tensor(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.device)
