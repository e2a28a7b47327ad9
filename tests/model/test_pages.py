"""Memory in huge pages is memory like any other: aligned, apart, as large as asked for."""

from __future__ import annotations

import pytest
import torch

from model.pages import HUGE_BYTES, Arena, in_lines, zeros


@pytest.mark.parametrize("size_bytes", [0, 64, HUGE_BYTES, 3 * HUGE_BYTES + 128])
def test_pieces_lie_on_lines_and_end_with_the_arena(size_bytes: int) -> None:
    arena = Arena(size_bytes)
    pieces = [arena.take(3, torch.bfloat16) for _ in range(min(2, size_bytes // 64))]
    assert all(piece.data_ptr() % 64 == 0 for piece in pieces)
    for number, piece in enumerate(pieces):
        piece.fill_(number)
    assert [piece.tolist() for piece in pieces] == [[float(number)] * 3 for number in range(len(pieces))]
    with pytest.raises(ValueError, match="bytes left"):
        arena.take(size_bytes + 1, torch.uint8)


def test_zeros_are_zeros() -> None:
    for shape in ((2, 0, 3), (3, 5, 7), (2, 1024, 1024)):
        made = zeros(shape, torch.float32, torch.device("cpu"))
        assert torch.equal(made, torch.zeros(shape))
    assert in_lines(65) == 128
