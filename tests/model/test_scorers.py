"""Ways of pruning: each equals an independent reckoning of what it stands for."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.scorers import by_lot, evenly


@dataclass(frozen=True)
class Picture:
    """What the two scorers that look at nothing but the shape may look at."""

    grids: tuple[tuple[int, int], ...]
    seed: int = 0
    fork_layer: int = 1
    twig_layers: int = 2

    def twig_attention(self) -> list[float]:
        raise AssertionError

    def base_attention(self, layer: int) -> list[float]:
        raise AssertionError(layer)

    def saliency(self) -> list[float]:
        raise AssertionError


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 9))
def test_an_even_grid_favours_no_quarter(count: int) -> None:
    """Every prefix of the order, so every budget, has as many tokens in each quarter, give or take one."""
    scores = evenly(Picture(((16, 16),)))
    chosen = sorted(range(256), key=lambda index: -scores[index])[: 4 * count]
    quarters = [(index // 16 // 8, index % 16 // 8) for index in chosen]
    assert {quarters.count((row, column)) for row in (0, 1) for column in (0, 1)} == {count}


def test_the_lot_is_the_pictures_own() -> None:
    first, again, other = (by_lot(Picture(((4, 4), (2, 3)), seed)) for seed in (7, 7, 8))
    assert len(first) == 16 + 6
    assert first == again != other


@pytest.mark.parametrize("grid", [(1, 1), (24, 24), (3, 7)])
def test_every_token_has_its_own_turn(grid: tuple[int, int]) -> None:
    assert len(set(evenly(Picture((grid,))))) == grid[0] * grid[1]
