"""How many bytes of KV cache a sequence takes, group by group, and which slabs a budget allows. No torch.

The cache is three slabs (`model.cache`), each with rows of one capacity: the longest sequence in it sets
what every row of that group costs.
Invariant: what `KvBudget` plans never holds more than the limit, not even while a slab is being moved.
Knows token counts alone: no prompts, no requests, no tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

# Capacities are multiples of this, so that sequences of nearly one length share their slabs.
STEP_TOKENS = 64


class ByGroup(NamedTuple):
    """A number for each layer group; see `model.cache`."""

    full: int
    kept: int
    text: int

    def longer(self, tokens: int) -> ByGroup:
        """By so many tokens of text, which are in every group."""
        return ByGroup(*(mine + tokens for mine in self))

    def covers(self, other: ByGroup) -> bool:
        return all(mine >= its for mine, its in zip(self, other, strict=True))


NOTHING = ByGroup(0, 0, 0)


def kv_tokens(text_tokens: int, image_tokens: int, kept_tokens: int, max_tokens: int) -> ByGroup:
    """Tokens of one sequence in each group, at its longest.

    kept_tokens: R', `image_tokens` where nothing is pruned. The answer's last token is never fed back.
    A visual token that ends the prompt stays in all groups: the caller counts it as text.
    """
    text = text_tokens + max_tokens - 1
    pruned = kept_tokens < image_tokens
    return ByGroup(text + image_tokens, text + kept_tokens, text if pruned else text + image_tokens)


@dataclass(frozen=True)
class KvShape:
    """layers: of each group (K + T, F - K, L - F). token_bytes: keys and values of one token in one layer."""

    layers: ByGroup
    token_bytes: int

    @classmethod
    def of(
        cls, layers: int, twig: tuple[int, int, int] | None, kv_heads: int, head_dim: int, element_bytes: int
    ) -> KvShape:
        """twig: its K, T and F; without one all layers are `kept`."""
        fork, depth, drop = twig or (0, 0, layers)
        groups = ByGroup(fork + depth, drop - fork, layers - drop)
        return cls(groups, 2 * kv_heads * head_dim * element_bytes)

    def by_group(self, tokens: ByGroup) -> ByGroup:
        """Bytes."""
        return ByGroup(*(n * t * self.token_bytes for n, t in zip(self.layers, tokens, strict=True)))

    def bytes_of(self, tokens: ByGroup) -> int:
        return sum(self.by_group(tokens))


@dataclass(frozen=True)
class Slabs:
    """capacity: tokens that one row takes, in each group."""

    rows: int = 0
    capacity: ByGroup = NOTHING


def rounded(tokens: ByGroup) -> ByGroup:
    return ByGroup(*(-(-count // STEP_TOKENS) * STEP_TOKENS for count in tokens))


def longest(sequences: Iterable[ByGroup]) -> ByGroup:
    return ByGroup(*map(max, zip(*sequences, strict=True)))


class KvBudget:
    """limit_bytes None: slabs grow as they must, and every free slot is taken.

    Under a limit slabs are made for whole sequences, with as many rows as fit, so that most can join
    without a move. Moving a slab holds it twice; where that is too much, the next sequence waits until
    enough others have left, at the latest until nothing runs and nothing has to be moved.
    """

    def __init__(self, shape: KvShape, limit_bytes: int | None, slots: int, max_model_len: int) -> None:
        self.shape, self.limit_bytes, self.slots = shape, limit_bytes, slots
        every = ByGroup(max_model_len, max_model_len, max_model_len)
        self.capacity_bytes = slots * shape.bytes_of(every) if limit_bytes is None else limit_bytes
        self.held = Slabs(slots if limit_bytes is None else 0)

    def least_bytes(self, tokens: ByGroup) -> int:
        """What a sequence takes alone, in slabs made for it."""
        return self.shape.bytes_of(rounded(tokens))

    def fits_alone(self, tokens: ByGroup) -> bool:
        return self.limit_bytes is None or self.least_bytes(tokens) <= self.limit_bytes

    def reserved_bytes(self, running: Iterable[ByGroup]) -> int:
        return sum(map(self.shape.bytes_of, running))

    def plan(self, running: Sequence[ByGroup], waiting: Sequence[ByGroup]) -> Slabs | None:
        """Slabs in which the first of `waiting` can join; None where it has to wait.

        The rest of `waiting` has a say in their size, as far as all then fit together.
        """
        if self.limit_bytes is None:
            return self.held
        wanted = self._wanted(running, waiting)
        # With nobody to be moved, slabs that hold fewer rows than there could be are not kept.
        enough = len(running) + 1 if running else wanted.rows
        if self.held.rows >= enough and self.held.capacity.covers(waiting[0]):
            return self.held
        if not running:
            return wanted
        for rows in range(wanted.rows, len(running), -1):
            slabs = Slabs(rows, wanted.capacity)
            if self._moving_bytes(slabs) <= self.limit_bytes:
                return slabs
        return None

    def _wanted(self, running: Sequence[ByGroup], waiting: Sequence[ByGroup]) -> Slabs:
        """The best slabs for those that run and the first that waits; rows may be too few for them."""
        together = [*running, waiting[0]]
        capacity = rounded(longest(together))
        for number, tokens in enumerate(waiting[1 : self.slots], len(together) + 1):
            wider = rounded(longest((capacity, tokens)))
            if self._rows(wider) < number:
                break
            capacity = wider
        return Slabs(self._rows(capacity), capacity)

    def _rows(self, capacity: ByGroup) -> int:
        return min(self.slots, self.capacity_bytes // self.shape.bytes_of(capacity))

    def _moving_bytes(self, slabs: Slabs) -> int:
        """The most that is held while the groups are moved one after the other, in their order."""
        old = [self.held.rows * size for size in self.shape.by_group(self.held.capacity)]
        new = [slabs.rows * size for size in self.shape.by_group(slabs.capacity)]
        return max(sum(new[: index + 1]) + sum(old[index:]) for index in range(len(new)))
