"""A round's drafts in one native call: trunk, twig and the twig's head token after token.

Invariant: as `model.drafting`'s own steps, which run where there are no kernels or tokens are drawn by lot.
Knows slots and tokens, not requests; pointers are valid for the call.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_int64, c_void_p
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from model.native.library import DraftC, int32s
from model.native.stack import NativeHead, NativeStack


@dataclass(frozen=True)
class Draftee:
    """One row. tokens: those to read first, the pending one last; vector: what stands for that, or None.

    position: the pending token's; budget: drafts at most.
    """

    slot: int
    tokens: Sequence[int]
    vector: Tensor | None
    position: int
    budget: int
    eos: frozenset[int]


class NativeDrafter:
    """embedding: [vocabulary, hidden] in the stacks' dtype; rope: complex64 [positions, 1, head_dim / 2]."""

    def __init__(
        self, trunk: NativeStack, twig: NativeStack, head: NativeHead, embedding: Tensor, rope: Tensor
    ) -> None:
        if embedding.dtype != twig.group.slab.dtype:
            raise ValueError(f"an embedding in {embedding.dtype} is not the stacks' {twig.group.slab.dtype}")
        _, _, outputs, _ = head.weights()
        if outputs > len(embedding):
            raise ValueError(f"the twig's head has {outputs} words, the embedding {len(embedding)}")
        self._trunk, self._twig, self._head = trunk, twig, head
        self._embedding, self._rope = embedding.contiguous(), rope.contiguous()

    def __call__(
        self, rows: Sequence[Draftee], threshold: float
    ) -> tuple[list[list[int]], Tensor, list[int]]:
        """Each row's drafts; the trunk's states of all that was read, float32 [n, hidden]; their slots."""
        trunk, twig, head = self._trunk, self._twig, self._head
        group, most = twig.group, max(1, *(row.budget for row in rows))
        lengths = [group.lengths[row.slot] for row in rows]
        self._check(rows, lengths)
        group.reserve(max(length + 1 + row.budget for length, row in zip(lengths, rows, strict=True)))
        slab = group.slab
        layer_stride, slot_stride, head_stride, _, _ = slab.stride()
        layer_bytes = layer_stride * slab.element_size()
        kind = self._embedding.dtype  # a vector is rounded as the tokens' are
        vectors = [None if row.vector is None else row.vector.to(kind).float().contiguous() for row in rows]
        tokens = [token for row in rows for token in row.tokens]
        eos = [sorted(row.eos) for row in rows]
        states = torch.empty(len(rows) * (most + 1), self._embedding.shape[1])
        drafts, counts = (c_int64 * (len(rows) * most))(), int32s([0] * len(rows))
        readers, read = int32s([0] * states.shape[0]), int32s([0])
        weights, scales, outputs, weight_bytes = head.weights()
        call = DraftC(
            ctypes.addressof(trunk.layers),
            ctypes.addressof(twig.layers),
            slab.data_ptr() + trunk.first * layer_bytes,
            slab.data_ptr() + twig.first * layer_bytes,
            layer_stride, slot_stride, head_stride,
            self._embedding.data_ptr(), self._rope.data_ptr(), weights, scales,
            threshold, outputs, weight_bytes, trunk.depth, twig.depth, len(rows), most,
            int32s([row.slot for row in rows]), int32s(lengths), int32s([row.position for row in rows]),
            int32s([len(row.tokens) for row in rows]), int32s([row.budget for row in rows]),
            int32s(list(accumulate(map(len, eos)))), int32s([token for each in eos for token in each]),
            (c_int64 * len(tokens))(*tokens),
            (c_void_p * len(rows))(*[None if vector is None else vector.data_ptr() for vector in vectors]),
            drafts, counts, states.data_ptr(), readers, read,
        )  # fmt: skip
        twig.draft(call)
        drafted = [drafts[most * i : most * i + count] for i, count in enumerate(counts)]
        return drafted, states[: read[0]], [rows[i].slot for i in readers[: read[0]]]

    def _check(self, rows: Sequence[Draftee], lengths: Sequence[int]) -> None:
        """The kernels believe what they are given."""
        vocabulary, positions = self._embedding.shape[0], self._rope.shape[0]
        for row, length in zip(rows, lengths, strict=True):
            before = len(row.tokens) - 1
            known = all(0 <= token < vocabulary for token in row.tokens)
            fits = 0 <= before <= min(length, row.position) and row.position + row.budget < positions
            if not (known and fits and row.budget >= 0):
                raise ValueError(
                    f"{row} does not fit {length} tokens, {vocabulary} words, {positions} places"
                )
