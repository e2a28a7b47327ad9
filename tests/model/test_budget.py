"""The arithmetic of pruning.py, over all budgets: against the formula, and against what a budget promises."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.pruning import (
    kept_budget,
    legal_range,
    pruned_tokens,
    retained_average,
    survivors,
    top_scores,
)
from model.request import RequestError

exhaustive = settings(max_examples=300)
finite = st.floats(0, 1, width=32)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """(L, M, K, F)"""
    layers = draw(st.integers(1, 80))
    fork = draw(st.integers(0, layers - 1))
    return layers, draw(st.integers(1, 3000)), fork, draw(st.integers(fork + 1, layers))


@pytest.mark.parametrize(("retained", "kept"), [(192, 227), (128, 134), (64, 41)])
def test_paper_table(retained: int, kept: int) -> None:
    assert kept_budget(retained, 32, 576, 2, 24) == kept


def test_embedded_shape() -> None:
    assert kept_budget(64, 16, 576, 1, 12) == 41


@exhaustive
@given(shapes(), st.integers(-10, 4000))
def test_formula_in_exact_numbers(shape: tuple[int, int, int, int], retained: int) -> None:
    layers, tokens, fork, drop = shape
    exact = math.ceil(Fraction(layers * retained - fork * tokens, drop - fork))
    assert pruned_tokens(retained, layers, tokens, fork, drop) == exact


@exhaustive
@given(shapes(), st.integers(-10, 4000))
def test_legal_means_between_none_and_all(shape: tuple[int, int, int, int], retained: int) -> None:
    layers, tokens, fork, drop = shape
    low, high = legal_range(layers, tokens, fork, drop)
    kept = pruned_tokens(retained, layers, tokens, fork, drop)
    if low <= retained <= high:
        assert 0 <= kept <= tokens
        # No less than was asked for, and less than one token in each middle layer more.
        excess = retained_average(kept, layers, tokens, fork, drop) - retained
        assert -1e-9 <= excess < (drop - fork) / layers
    elif retained >= 0:
        assert not 0 <= kept <= tokens


@exhaustive
@given(shapes(), st.integers(-10, 4000))
def test_impossible_budgets_are_refused(shape: tuple[int, int, int, int], retained: int) -> None:
    layers, tokens, fork, drop = shape
    low, high = legal_range(layers, tokens, fork, drop)
    if low <= retained <= high or retained == tokens:
        assert 0 <= kept_budget(retained, layers, tokens, fork, drop) <= tokens
    else:
        with pytest.raises(RequestError, match=rf"{low}\D+{high}\D") as raised:
            kept_budget(retained, layers, tokens, fork, drop)
        assert raised.value.param == "retained_tokens"


@exhaustive
@given(st.lists(finite, max_size=60), st.data())
def test_top_scores(scores: list[float], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(scores)))
    kept = top_scores(scores, count)
    assert kept == sorted(set(kept))
    assert len(kept) == count
    dropped = [scores[index] for index in set(range(len(scores))) - set(kept)]
    assert min((scores[index] for index in kept), default=2.0) >= max(dropped, default=-1.0)


@exhaustive
@given(st.lists(st.booleans(), min_size=1, max_size=40), st.data())
def test_survivors(is_visual: list[bool], data: st.DataObject) -> None:
    """Text is always there, in order; the last token too; chosen visual tokens only in the middle layers."""
    visual = [position for position, flag in enumerate(is_visual) if flag]
    chosen = data.draw(st.lists(st.sampled_from(range(len(visual))), unique=True)) if visual else []
    outcome = survivors(len(is_visual), visual, sorted(chosen))
    text = {position for position, flag in enumerate(is_visual) if not flag} | {len(is_visual) - 1}
    assert outcome.text == sorted(text)
    assert outcome.kept == sorted(text | {visual[index] for index in chosen})
