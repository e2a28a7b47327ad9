"""The KV cache: three layer groups, each with its own length for every slot.

`full` holds trunk and twig layers (all tokens), `kept` base layers K..F-1, `text` base layers F..L-1.
Invariant: occupied slots are 0..n-1; what a window shows of them is a view, never a copy, and what lies
beyond a slot's length is garbage but finite, and masked.
Knows lengths and tensors, not requests; a token's position is somebody else's state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import add
from typing import NamedTuple

import torch
from torch import Tensor

from model.memory import ByGroup, Slabs
from model.pages import zeros

GROUPS = ("full", "kept", "text")
# Slabs grow in steps of this many tokens: growing copies, so it must be rare.
GROWTH_TOKENS = 256
# Rows whose lengths differ by no more than this attend in one padded call (measured on CPU).
SPREAD_TOKENS = 128


# How far behind its length each slot's new tokens begin: what earlier windows of a round have written, or
# less than nothing where tokens that count already are written again.
Offsets = int | Sequence[int]


class Span(NamedTuple):
    """New tokens of one sequence, or `width` of each of several neighbours, and all they may attend to.

    keys, values: one view a layer, [rows, kv_heads, tokens, head_dim], the new tokens included.
    mask: additive, broadcast to [rows, 1, width, tokens]; None where causality says enough.
    """

    rows: int
    width: int
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    mask: Tensor | None
    causal: bool


@dataclass(frozen=True)
class Window:
    """One forward's access to one group: the new tokens of some slots, packed one slot after the other.

    sizes: new tokens of each span. targets: one view a layer that takes the new tokens, [sum of sizes,
    2 * kv_heads, head_dim], or [slots, capacity, ...] with their places in `index` where they lie apart.
    """

    spans: list[Span]
    sizes: list[int]
    targets: tuple[Tensor, ...]
    index: tuple[Tensor, ...] | None

    def write(self, layer: int, keys_values: Tensor) -> None:
        """keys_values: [sum of sizes, 2 * kv_heads * head_dim]."""
        target = self.targets[layer]
        rows = keys_values.unflatten(1, target.shape[-2:])
        if self.index is None:
            target.copy_(rows)
        else:
            target.index_put_(self.index, rows)


def alike(slots: Sequence[int], starts: Sequence[int], widths: Sequence[int]) -> list[slice]:
    """Cuts the rows of a window into runs of neighbouring slots that can attend in one padded call.

    Attention of its own for every row costs a call each; a padded one reads every row to the longest.
    """
    cuts = [0]
    for row in range(1, len(slots)):
        first = cuts[-1]
        neighbours = slots[row] == slots[row - 1] + 1 and widths[row] == widths[first]
        if not neighbours or abs(starts[row] - starts[first]) > SPREAD_TOKENS:
            cuts.append(row)
    return list(map(slice, cuts, [*cuts[1:], len(slots)]))


def causal_mask(before: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Additive [width, before + width]: new token i sees all `before` it and the new ones up to itself."""
    mask = torch.full((width, before + width), float("-inf"), dtype=dtype, device=device)
    return mask.triu_(before + 1)


class LayerGroup:
    """The slab of one group: [layers, slots, 2 * kv_heads, capacity, head_dim], keys before values.

    A head's tokens lie side by side: attention reads one stream of keys and one of values, where rows of
    whole tokens would give it a line or two a page.
    """

    def __init__(
        self, layers: int, slots: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.layers = layers
        self.kv_heads, self.head_dim = kv_heads, head_dim
        self.lengths = [0] * slots
        self.slab = torch.zeros(layers, slots, 2 * kv_heads, 0, head_dim, dtype=dtype, device=device)
        self._mask = self.slab.new_zeros(0, 0)

    @property
    def slots(self) -> int:
        return self.slab.shape[1]

    @property
    def capacity(self) -> int:
        return self.slab.shape[3]

    def reserve(self, tokens: int) -> None:
        if tokens <= self.capacity:
            return
        capacity = -(-tokens // GROWTH_TOKENS) * GROWTH_TOKENS
        self.resize(self.slots, capacity)

    def resize(self, slots: int, capacity: int) -> None:
        """Another slab that holds what fits of this one; for a moment there are both."""
        rows, tokens = min(slots, self.slots), min(capacity, self.capacity)
        shape = (self.layers, slots, 2 * self.kv_heads, capacity, self.head_dim)
        resized = zeros(shape, self.slab.dtype, self.slab.device)
        resized[:, :rows, :, :tokens] = self.slab[:, :rows, :, :tokens]
        self.slab = resized
        self.lengths = (self.lengths + [0] * slots)[:slots]

    def starts(self, slots: Sequence[int], offsets: Offsets) -> list[int]:
        lengths = self.lengths
        if isinstance(offsets, int):
            return [lengths[slot] + offsets for slot in slots]
        return [lengths[slot] + offset for slot, offset in zip(slots, offsets, strict=True)]

    def window(self, slots: Sequence[int], widths: Sequence[int], offsets: Offsets = 0) -> Window:
        """Access for so many new tokens in each of the slots; lengths do not move yet."""
        starts = self.starts(slots, offsets)
        self.reserve(max(map(add, starts, widths)))
        spans = [
            self._span(slots[run.start], starts[run], widths[run.start])
            for run in alike(slots, starts, widths)
        ]
        rows = self.slab.transpose(2, 3)  # [layers, slots, capacity, 2 * kv_heads, head_dim]
        if len(slots) == 1:
            targets, index = rows[:, slots[0], starts[0] : starts[0] + widths[0]], None
        else:
            runs = list(zip(slots, starts, widths, strict=True))
            places = [(slot, start + i) for slot, start, width in runs for i in range(width)]
            targets, index = rows, torch.tensor(places, device=self.slab.device).unbind(1)
        sizes = [span.rows * span.width for span in spans]
        return Window(spans, sizes, targets.unbind(0), index)

    def _span(self, slot: int, starts: list[int], width: int) -> Span:
        rows, total = len(starts), max(starts) + width
        keys, values = self.slab[:, slot : slot + rows, :, :total].split(self.kv_heads, 2)
        causal = width > 1 and total == width
        mask = None
        if rows > 1 and (width > 1 or min(starts) < max(starts)):
            mask = self._padded_mask(starts, width, total)
        elif width > 1 and not causal:
            mask = self._causal_mask(starts[0], width)
        return Span(rows, width, keys.unbind(0), values.unbind(0), mask, causal and rows == 1)

    def _padded_mask(self, starts: list[int], width: int, total: int) -> Tensor:
        # [rows, 1, width, total]: token i of a row sees its first start + i + 1 tokens.
        device = self.slab.device
        newest = torch.tensor(starts, device=device)[:, None] + torch.arange(width, device=device)
        hidden = torch.arange(total, device=device) > newest[:, None, :, None]
        mask = self.slab.new_zeros(len(starts), 1, width, total)
        return mask.masked_fill_(hidden, float("-inf"))

    def _causal_mask(self, before: int, width: int) -> Tensor:
        """A view into one mask of this group: its last columns are those of any shorter history."""
        rows, columns = self._mask.shape
        if rows < width or columns - rows < self.capacity:
            rows = max(width, rows)
            self._mask = causal_mask(self.capacity, rows, self.slab.dtype, self.slab.device)
        columns = self._mask.shape[1] - self._mask.shape[0]
        return self._mask[:width, columns - before : columns + width]

    def rows(self, slot: int, tokens: int) -> Tensor:
        """A copy of a slot's first tokens, [layers, 2 * kv_heads, tokens, head_dim]."""
        return self.slab[:, slot, :, :tokens].clone()

    def put_rows(self, slot: int, rows: Tensor) -> None:
        """Such a copy into a slot that holds nothing yet; they count from here on."""
        tokens = rows.shape[2]
        self.reserve(tokens)
        self.slab[:, slot, :, :tokens] = rows
        self.lengths[slot] = tokens

    def wipe(self, slot: int, start: int = 0) -> None:
        """What a slot holds from a token on must not reach who is there next. It would be masked, but what
        has overflowed is no number, and stays none with a mask added. Only float16 overflows."""
        if self.slab.dtype == torch.float16:
            self.slab[:, slot, :, start:].zero_()

    def free(self, slot: int) -> None:
        self.lengths[slot] = 0
        self.wipe(slot)

    def move(self, source: int, target: int) -> None:
        length = self.lengths[source]
        self.slab[:, target, :, :length] = self.slab[:, source, :, :length]
        self.lengths[target], self.lengths[source] = length, 0


class Cache:
    """The three groups together, and which slots are taken."""

    def __init__(self, full: LayerGroup, kept: LayerGroup, text: LayerGroup) -> None:
        self.full, self.kept, self.text = full, kept, text
        self.taken = 0

    @property
    def groups(self) -> tuple[LayerGroup, LayerGroup, LayerGroup]:
        return self.full, self.kept, self.text

    def take(self) -> int:
        if self.taken == self.full.slots:
            raise RuntimeError("no free slot in the cache")
        self.taken += 1
        return self.taken - 1

    @property
    def held(self) -> Slabs:
        """What every group has: all the same, but where memory ran out in the middle of `hold`."""
        capacity = ByGroup(*(group.capacity for group in self.groups))
        return Slabs(min(group.slots for group in self.groups), capacity)

    @torch.inference_mode()
    def hold(self, slabs: Slabs) -> None:
        """Slabs of this size; those that run keep their tokens. Group after group, as the plan reckons."""
        if not self.taken:
            for group in self.groups:
                group.resize(0, 0)
        for group, capacity in zip(self.groups, slabs.capacity, strict=True):
            group.resize(slabs.rows, capacity)

    @torch.inference_mode()
    def release(self, slot: int) -> int:
        """Frees a slot. The last taken slot moves into the hole; returns the slot that moved (or `slot`)."""
        last = self.taken - 1
        for group in self.groups:
            if slot != last:
                group.wipe(slot)
                group.move(last, slot)
            group.free(last)
        self.taken = last
        return last

    def extend(self, slot: int, tokens: int) -> None:
        """Counts the tokens that stay of those a round wrote; the rest is rolled back by not counting it."""
        for group in self.groups:
            group.lengths[slot] += tokens

    def wipe_beyond(self, slot: int) -> None:
        for group in self.groups:
            group.wipe(slot, group.lengths[slot])

    def set_lengths(self, slot: int, full: int, kept: int, text: int) -> None:
        for group, length in zip(self.groups, (full, kept, text), strict=True):
            group.lengths[slot] = length

    @torch.inference_mode()
    def clear(self) -> None:
        self.taken = 0
        for group in self.groups:
            for slot in range(group.slots):
                group.free(slot)

    def allocated_bytes(self) -> int:
        return sum(group.slab.nbytes for group in self.groups)

    def check_empty(self) -> None:
        if self.taken:
            raise AssertionError(f"{self.taken} cache slots are still taken")
        for name, group in zip(GROUPS, self.groups, strict=True):
            if any(group.lengths):
                raise AssertionError(f"cache group {name!r} is not empty: lengths {group.lengths}")
