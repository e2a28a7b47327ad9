"""The other side's number format: the one whose products take least time."""

from __future__ import annotations

import pytest
import torch

from model.bench import peer
from model.bench.peer import Work, fastest_dtype

WORK = Work(64, 96)


@pytest.mark.parametrize("faster", ["bfloat16", "float32"])
def test_the_faster_one_is_taken(faster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {getattr(torch, name): 1.0 if name == faster else 2.0 for name in peer.CANDIDATES}
    monkeypatch.setattr(peer, "_seconds", lambda _work, dtype, _clock: seconds[dtype])
    assert fastest_dtype(WORK, "bfloat16", "cpu") == faster


def test_what_is_not_emulated_is_not_replaced() -> None:
    assert fastest_dtype(WORK, "float32", "cpu") == "float32"
    assert fastest_dtype(WORK, "bfloat16", "cuda") == "bfloat16"


def test_it_is_timed() -> None:
    assert fastest_dtype(WORK, "bfloat16", "cpu") in peer.CANDIDATES
