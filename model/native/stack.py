"""Stacks and heads that run in native code, from the tensors of torch's layers.

Activations are float32 whatever the weights are. Invariant: a layer's torch weights are given up as soon
as they are packed, so that a model is never twice in memory; after that only the native stack can run it.
Knows the layout of packed weights, not files or compilers.
"""

from __future__ import annotations

import copy
import ctypes
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from model.cache import LayerGroup, Offsets
from model.decoder import DecoderLayer, DecoderShape, Head
from model.native.library import DTYPES, DraftC, LayerC, Library, ShapeC, WorkC, int32s, return_free_memory
from model.pages import Arena, in_lines

QUANTIZED_ROWS = 128  # at a time, as floats


def supports(shape: DecoderShape, dtype: torch.dtype, device: torch.device) -> bool:
    """Pairs of inputs are stored together, so every product needs an even number of them."""
    even = not (shape.hidden % 2 or shape.intermediate % 2 or shape.head_dim % 2)
    return device.type == "cpu" and dtype in DTYPES and even and shape.heads % shape.kv_heads == 0


def interleaved(gate_up: Tensor, lanes: int) -> Tensor:
    """[hidden, gates then ups] -> [hidden, `lanes` gates, their ups, ...], filled up with zeros."""
    hidden, width = gate_up.shape[0], gate_up.shape[1] // 2
    whole, rest = divmod(width, lanes)
    mixed = gate_up.new_zeros(hidden, whole + (rest > 0), 2, lanes)
    for half, part in enumerate(gate_up.chunk(2, -1)):
        mixed[:, :whole, half] = part[:, : whole * lanes].unflatten(1, (whole, lanes))
        if rest:
            mixed[:, whole, half, :rest] = part[:, whole * lanes :]
    return mixed.view(hidden, -1)


def _packed_bytes(library: Library, layer: DecoderLayer) -> int:
    """Of a layer's four products; the gates are filled up to whole vectors as their ups are."""
    lanes, width = library.lanes, layer.gate_up.shape[1] // 2
    gate_up = library.packed_elements(layer.gate_up.shape[0], -(-width // lanes) * 2 * lanes)
    others = sum(map(library.packed_bytes, (layer.qkv, layer.out, layer.down)))
    return others + in_lines(gate_up * layer.gate_up.element_size())


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


class NativeStack:
    """See `model.stack.Stack`."""

    def __init__(
        self,
        library: Library,
        layers: Sequence[DecoderLayer],
        shape: DecoderShape,
        group: LayerGroup,
        first: int = 0,
    ) -> None:
        self.depth, self.group, self.first = len(layers), group, first
        self._library, self._bf16 = library, int(group.slab.dtype == torch.bfloat16)
        self._shape = ShapeC(
            shape.hidden, shape.intermediate, shape.heads, shape.kv_heads, shape.head_dim, 1, shape.norm_eps
        )
        self._kept: list[Tensor | None] = []  # alive as long as the pointers
        self._arena = Arena(sum(_packed_bytes(library, layer) for layer in layers))
        self.layers = (LayerC * len(layers))(*[self._packed(layer) for layer in layers])

    def _packed(self, layer: DecoderLayer) -> LayerC:
        """One product at a time, so that no more than one is twice in memory."""
        weights = layer.give_up_weights()._asdict()
        biases = [weights.pop(name) for name in ("qkv_bias", "out_bias")]
        weights["gate_up"] = interleaved(weights["gate_up"], self._library.lanes)
        kept = []
        for name in ("qkv", "out", "gate_up", "down"):
            kept.append(self._library.pack(weights.pop(name), self._arena))
            return_free_memory()
        kept += [None if bias is None else bias.float() for bias in biases]
        self._kept += kept
        return LayerC(*map(_pointer, kept))

    def __call__(
        self, x: Tensor, cis: Tensor, slots: Sequence[int], widths: Sequence[int], offsets: Offsets = 0
    ) -> Tensor:
        if not self.depth:
            return x
        return self._run(x, cis, slots, widths, offsets)

    def fill(self, x: Tensor, cis: Tensor, slot: int) -> None:
        if self.depth and x.shape[0]:
            self._run(x, cis, [slot], [x.shape[0]], keys_only=True)

    def fill_scored(self, x: Tensor, cis: Tensor, slot: int) -> Tensor:
        scores = torch.empty(self._shape.heads, self.group.lengths[slot] + x.shape[0])
        self._run(x, cis, [slot], [x.shape[0]], keys_only=True, scores=scores)
        return scores.mean(0)

    def draft(self, call: DraftC) -> None:
        """What `model.native.drafting` asks, of layers as these are."""
        self._shape.threads = torch.get_num_threads()
        self._library.draft(ctypes.byref(self._shape), ctypes.byref(call), self._bf16)

    def part(self, depth: int, group: LayerGroup) -> NativeStack:
        part = copy.copy(self)  # the same packed weights
        part.depth, part.group, part.first = depth, group, 0
        return part

    def _check(
        self, x: Tensor, cis: Tensor, slots: Sequence[int], starts: Sequence[int], widths: Sequence[int]
    ) -> None:
        """The kernels believe what they are given."""
        rows, group = sum(widths), self.group
        fits = x.shape == (rows, self._shape.hidden) and cis.shape == (rows, 1, self._shape.head_dim // 2)
        if not (rows and fits and min(starts) >= 0 and max(slots) < len(group.lengths)):
            raise ValueError(
                f"states {tuple(x.shape)} and angles {tuple(cis.shape)} do not fit {rows} tokens of slots "
                f"{list(slots)} from {list(starts)}"
            )

    def _run(
        self,
        x: Tensor,
        cis: Tensor,
        slots: Sequence[int],
        widths: Sequence[int],
        offsets: Offsets = 0,
        *,
        keys_only: bool = False,
        scores: Tensor | None = None,
    ) -> Tensor:
        group, x, cis = self.group, x.to(torch.float32, copy=True).contiguous(), cis.contiguous()
        starts = group.starts(slots, offsets)
        self._check(x, cis, slots, starts, widths)
        group.reserve(max(start + width for start, width in zip(starts, widths, strict=True)))
        slab = group.slab
        layer_stride, slot_stride, head_stride, _, _ = slab.stride()
        work = WorkC(
            x.data_ptr(),
            cis.data_ptr(),
            slab.data_ptr() + self.first * layer_stride * slab.element_size(),
            layer_stride,
            slot_stride,
            head_stride,
            int32s(slots),
            int32s(starts),
            int32s(widths),
            _pointer(scores),
            self.depth,
            x.shape[0],
            len(slots),
            keys_only,
        )
        self._shape.threads = torch.get_num_threads()
        self._library.layers(ctypes.byref(self._shape), self.layers, ctypes.byref(work), self._bf16)
        return x


def quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[inputs, outputs] as int8, symmetric, and what each column was divided by, float32 [outputs].

    Raises ValueError where a weight is no number.
    """
    bands = weight.split(QUANTIZED_ROWS)
    largest = torch.stack([rows.abs().amax(0) for rows in bands]).amax(0).float()
    if not largest.isfinite().all():
        raise ValueError("the twig's head has weights that are not finite")
    scales = (largest / 127).clamp_min(torch.finfo(torch.float32).tiny)
    whole = torch.empty(weight.shape, dtype=torch.int8)
    for rows, to in zip(bands, whole.split(QUANTIZED_ROWS), strict=True):
        to.copy_((rows.float() / scales).round_())
    return whole, scales


class NativeHead:
    """See `model.stack.LogitHead`.

    drafts_only: its tokens are verified by another, so its weights may be half as many bytes: where they are
    bf16 they become integers. What is drafted may differ for it; what is answered does not, or, where it is
    drawn by lot, has the same distribution.
    """

    def __init__(self, library: Library, head: Head, eps: float, *, drafts_only: bool = False) -> None:
        weight = head.give_up_weight()
        self._library, self._eps = library, eps
        self._inputs, self._outputs = weight.shape
        self._scales: Tensor | None = None
        if drafts_only and weight.dtype == torch.bfloat16:
            weight, scales = quantized(weight)
            self._scales = F.pad(scales, (0, -len(scales) % (2 * library.lanes)))
        self._weight_bytes = weight.element_size()
        self._weight = library.pack(weight, Arena(library.packed_bytes(weight)))

    def __call__(self, x: Tensor) -> Tensor:
        logits = torch.empty(x.shape[0], self._outputs)
        self._run(x, logits, None, None)
        return logits

    def choose(self, x: Tensor) -> list[int]:
        return self.propose(x)[0]

    def propose(self, x: Tensor) -> tuple[list[int], list[float]]:
        rows = x.shape[0]
        tokens, probabilities = torch.empty(rows, dtype=torch.long), torch.empty(rows)
        self._run(x, torch.empty(rows, self._outputs), tokens, probabilities)
        return tokens.tolist(), probabilities.tolist()

    def weights(self) -> tuple[int, int | None, int, int]:
        """Addresses of the weights and of their scales, columns, bytes of a weight."""
        return self._weight.data_ptr(), _pointer(self._scales), self._outputs, self._weight_bytes

    def _run(self, x: Tensor, logits: Tensor, tokens: Tensor | None, probabilities: Tensor | None) -> None:
        x = x.float().contiguous()
        self._library.head(
            self._weight.data_ptr(),
            _pointer(self._scales),
            self._inputs,
            self._outputs,
            self._weight_bytes,
            torch.get_num_threads(),
            self._eps,
            x.data_ptr(),
            x.shape[0],
            logits.data_ptr(),
            _pointer(tokens),
            _pointer(probabilities),
        )
