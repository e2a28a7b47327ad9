"""The KV accounting without a tensor: sizes by group, and any history under a budget."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from model.memory import STEP_TOKENS, ByGroup, KvBudget, KvShape, Slabs, kv_tokens, longest, rounded

PAPER = KvShape.of(32, (2, 3, 24), kv_heads=32, head_dim=128, element_bytes=2)


def test_the_papers_shape() -> None:
    """K=2, T=3, F=24 of 32 layers; 16 KiB a token and layer in bf16."""
    assert (PAPER.layers, PAPER.token_bytes) == (ByGroup(5, 22, 8), 16_384)
    pruned = kv_tokens(text_tokens=40, image_tokens=576, kept_tokens=41, max_tokens=128)
    assert pruned == ByGroup(743, 208, 167)
    assert PAPER.bytes_of(pruned) == (5 * 743 + 22 * 208 + 8 * 167) * 16_384
    assert kv_tokens(40, 576, 576, 128) == ByGroup(743, 743, 743)


def test_without_a_twig_one_group_holds_all_layers() -> None:
    assert KvShape.of(6, None, 2, 16, 4).layers == ByGroup(0, 6, 0)


def test_no_limit_plans_nothing() -> None:
    budget = KvBudget(PAPER, None, slots=4, max_model_len=100)
    assert budget.plan([], [ByGroup(90, 90, 90)]) == Slabs(4)
    assert budget.capacity_bytes == 4 * 100 * 35 * 16_384
    assert budget.fits_alone(ByGroup(10**9, 0, 0))


UNIT = KvShape(ByGroup(1, 1, 1), 1)
SMALL, LARGE = ByGroup(64, 64, 64), ByGroup(256, 256, 256)


def test_rows_fill_the_budget_at_once() -> None:
    budget = KvBudget(UNIT, 1000, slots=8, max_model_len=256)
    assert budget.plan([], [SMALL]) == Slabs(5, SMALL)


def test_those_that_wait_are_thought_of_while_all_fit() -> None:
    budget = KvBudget(UNIT, 2 * 768, slots=8, max_model_len=256)
    assert budget.plan([], [SMALL, LARGE]) == Slabs(2, LARGE)
    assert budget.plan([], [SMALL, SMALL, LARGE]) == Slabs(8, SMALL)


def test_a_long_one_waits_until_moving_is_allowed() -> None:
    budget = KvBudget(UNIT, 1536, slots=8, max_model_len=256)
    budget.held = Slabs(8, SMALL)
    assert budget.plan([SMALL] * 2, [LARGE]) is None
    assert budget.plan([SMALL], [LARGE]) is None
    assert budget.plan([], [LARGE]) == Slabs(2, LARGE)


def test_wide_slabs_are_given_up_when_nothing_runs() -> None:
    """Else two rows made for long sequences would serve short ones two at a time for ever."""
    budget = KvBudget(UNIT, 1536, slots=8, max_model_len=256)
    budget.held = Slabs(2, LARGE)
    assert budget.plan([SMALL], [SMALL]) == Slabs(2, LARGE)
    assert budget.plan([SMALL] * 2, [SMALL]) is None
    assert budget.plan([], [SMALL]) == Slabs(8, SMALL)


sizes = st.builds(ByGroup, st.integers(1, 700), st.integers(1, 300), st.integers(1, 200))


@given(sizes)
@settings(max_examples=50)
def test_rounding(tokens: ByGroup) -> None:
    assert rounded(tokens).covers(tokens)
    for size, count in zip(rounded(tokens), tokens, strict=True):
        assert 0 <= size - count < STEP_TOKENS
        assert size % STEP_TOKENS == 0


class Histories(RuleBasedStateMachine):
    """Sequences come, join when the plan lets them, and leave; the test moves slabs as the cache does."""

    @initialize(limit=st.integers(1, 6_000_000), slots=st.integers(1, 6), twig=st.booleans())
    def start(self, limit: int, slots: int, twig: bool) -> None:
        shape = KvShape.of(8, (2, 2, 6) if twig else None, kv_heads=2, head_dim=16, element_bytes=4)
        self.budget = KvBudget(shape, limit, slots, max_model_len=1024)
        self.running: list[ByGroup] = []
        self.waiting: list[ByGroup] = []

    @rule(tokens=sizes)
    def arrive(self, tokens: ByGroup) -> None:
        if self.budget.fits_alone(tokens):
            self.waiting.append(tokens)

    @precondition(lambda self: getattr(self, "waiting", None))
    @rule()
    def admit(self) -> None:
        if len(self.running) == self.budget.slots:
            return
        slabs = self.budget.plan(self.running, self.waiting)
        if slabs is None:
            assert self.running, "nobody runs, and yet the first in line has to wait"
            return
        if slabs != self.budget.held:
            self._move(slabs)
        self.running.append(self.waiting.pop(0))

    def _move(self, slabs: Slabs) -> None:
        shape, old = self.budget.shape, self.budget.held
        held = [old.rows * size if self.running else 0 for size in shape.by_group(old.capacity)]
        for index, size in enumerate(shape.by_group(slabs.capacity)):
            assert sum(held) + slabs.rows * size <= self.budget.limit_bytes
            held[index] = slabs.rows * size
        self.budget.held = slabs

    @precondition(lambda self: getattr(self, "running", None))
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))

    @invariant()
    def what_runs_has_its_place(self) -> None:
        if not getattr(self, "running", None):
            return
        held = self.budget.held
        assert len(self.running) <= held.rows <= self.budget.slots
        assert held.capacity.covers(longest(self.running))
        assert held.rows * self.budget.shape.bytes_of(held.capacity) <= self.budget.limit_bytes
        assert self.budget.reserved_bytes(self.running) <= self.budget.capacity_bytes


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=80, stateful_step_count=40)


@pytest.mark.parametrize("limit", [0, 1])
def test_nothing_fits_no_room(limit: int) -> None:
    assert not KvBudget(UNIT, limit, slots=1, max_model_len=8).fits_alone(ByGroup(1, 1, 1))
