"""The cache over any history: what a row may see is its own tokens, whoever held the slot before."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from model.cache import GROWTH_TOKENS, Cache, LayerGroup, Span, Window

LAYERS, KV_HEADS, HEAD_DIM = 2, 2, 3
FEATURES = 2 * KV_HEADS * HEAD_DIM


def new_group(slots: int, layers: int = LAYERS) -> LayerGroup:
    return LayerGroup(layers, slots, KV_HEADS, HEAD_DIM, torch.float32, torch.device("cpu"))


def seen(window: Window, layer: int) -> list[list[float]]:
    """For every packed new token: the first feature of each key it attends to, in order."""
    return [
        _visible(span, row, step, layer)
        for span in window.spans
        for row in range(span.rows)
        for step in range(span.width)
    ]


def _visible(span: Span, row: int, step: int, layer: int) -> list[float]:
    keys = span.keys[layer][row, 0, :, 0]
    if span.mask is not None:
        mask = span.mask.expand(span.rows, 1, span.width, len(keys))
        return keys[mask[row, 0, step] == 0].tolist()
    return keys[: step + 1].tolist() if span.causal else keys.tolist()


def filled(numbers: list[float]) -> torch.Tensor:
    """[tokens, features], every feature of a token its number."""
    return torch.tensor(numbers).view(-1, 1).expand(-1, FEATURES)


class Histories(RuleBasedStateMachine):
    """The model: for each taken slot the numbers that were written to it and counted."""

    @initialize(slots=st.integers(1, 4))
    def start(self, slots: int) -> None:
        self.cache = Cache(new_group(slots), new_group(slots), new_group(slots, layers=0))
        self.rows: list[list[float]] = []
        self.written = 0

    def _numbers(self, count: int) -> list[float]:
        self.written += count
        return [float(number) for number in range(self.written - count + 1, self.written + 1)]

    def _write(self, new: dict[int, list[float]]) -> None:
        """A forward of both groups that hold layers; each layer checks what its tokens see."""
        packed = filled([number for numbers in new.values() for number in numbers])
        for group in (self.cache.full, self.cache.kept):
            window = group.window(list(new), [len(numbers) for numbers in new.values()])
            expected = [
                self.rows[slot] + numbers[: step + 1]
                for slot, numbers in new.items()
                for step in range(len(numbers))
            ]
            for layer in range(LAYERS):
                window.write(layer, packed)
                assert seen(window, layer) == expected
                for span in window.spans:
                    assert torch.equal(span.keys[layer], span.values[layer])

    @precondition(lambda self: hasattr(self, "cache") and len(self.rows) < self.cache.full.slots)
    @rule(tokens=st.integers(1, 300))
    def prefill(self, tokens: int) -> None:
        """Long prompts make the slab grow under the running rows."""
        slot = self.cache.take()
        assert slot == len(self.rows)
        self.rows.append([])
        new = self._numbers(tokens)
        self._write({slot: new})
        self.cache.set_lengths(slot, tokens, tokens, tokens)
        self.rows[slot] = new

    @precondition(lambda self: getattr(self, "rows", None))
    @rule(data=st.data())
    def round(self, data: st.DataObject) -> None:
        """Some rows write tokens; each counts its own accepted ones, the rest is overwritten later."""
        slots = data.draw(st.lists(st.sampled_from(range(len(self.rows))), min_size=1, unique=True))
        new = {slot: self._numbers(data.draw(st.integers(1, 5))) for slot in sorted(slots)}
        self._write(new)
        for slot, numbers in new.items():
            accepted = data.draw(st.integers(1, len(numbers)))
            self.cache.extend(slot, accepted)
            self.rows[slot] = self.rows[slot] + numbers[:accepted]

    @precondition(lambda self: getattr(self, "rows", None))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        slot = data.draw(st.integers(0, len(self.rows) - 1))
        self.cache.release(slot)
        last = self.rows.pop()
        if slot < len(self.rows):
            self.rows[slot] = last

    @invariant()
    def lengths_are_the_models(self) -> None:
        if not hasattr(self, "cache"):
            return
        lengths = [len(row) for row in self.rows]
        for group in self.cache.groups:
            assert group.lengths == lengths + [0] * (group.slots - len(lengths))
        if not lengths:
            self.cache.check_empty()


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=40, stateful_step_count=15)


def test_steps_of_one_round_see_each_other() -> None:
    """Drafting writes one token a step, uncounted: `offsets` says how many are already there."""
    group = new_group(3)
    for slot, length in enumerate((3, 1, 2)):
        group.window([slot], [length]).write(0, filled([slot + 1.0] * length))
        group.lengths[slot] = length
    for step, slots in enumerate(([0, 1, 2], [0, 2], [0, 2])):
        window = group.window(slots, [1] * len(slots), offsets=step)
        window.write(0, filled([10.0 + step] * len(slots)))
    drafts = [10.0, 11.0, 12.0]
    assert seen(window, 0) == [[1.0, 1.0, 1.0, *drafts], [3.0, 3.0, *drafts]]
    assert group.lengths == [3, 1, 2]


def test_a_mask_made_before_the_slab_grew_is_not_cut_short() -> None:
    """One for many new tokens is as wide as one for few behind a longer history, and has less of it."""
    group = new_group(1)
    group.lengths[0] = 1
    group.window([0], [GROWTH_TOKENS + 2])
    group.lengths[0], history = 0, 2 * GROWTH_TOKENS + 2
    group.window([0], [history]).write(0, filled([float(at) for at in range(history)]))
    group.lengths[0] = history
    window = group.window([0], [2])
    window.write(0, filled([-1.0, -2.0]))
    before = [float(at) for at in range(history)]
    assert seen(window, 0) == [[*before, -1.0], [*before, -1.0, -2.0]]


def test_the_slab_grows_in_steps_and_keeps_what_it_holds() -> None:
    group = new_group(1)
    group.window([0], [2]).write(1, filled([1.0, 1.0]))
    group.lengths[0] = 2
    assert group.capacity == GROWTH_TOKENS
    group.reserve(GROWTH_TOKENS + 1)
    assert group.capacity == 2 * GROWTH_TOKENS
    assert group.slab[1, 0, 0, :3, 0].tolist() == [1.0, 1.0, 0.0]


def test_a_leak_is_named() -> None:
    cache = Cache(new_group(1), new_group(1), new_group(1))
    cache.take()
    with pytest.raises(AssertionError, match="1 cache slots"):
        cache.check_empty()
    with pytest.raises(RuntimeError, match="no free slot"):
        cache.take()
    cache.clear()
    cache.kept.lengths[0] = 4
    with pytest.raises(AssertionError, match="kept"):
        cache.check_empty()
