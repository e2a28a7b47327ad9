"""Drafts in one native call are those of the steps in Python: tokens, what was read, bits of the states."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from model.drafting import Drafter, Drafting, Row
from model.native.drafting import Draftee, NativeDrafter
from model.native.library import Library
from model.sampling import Lottery
from tests.model.harness import IMAGE, World, ask, run
from tests.model.tiny import Shape, TwigShape, with_draft

PARTS = [(5, IMAGE, 4), (8,), (IMAGE, 6), (3, IMAGE, 2, IMAGE, 4), (2, IMAGE), (30,)]


class Compared(Drafter):
    """Drafts twice, which writes the same twice, and keeps what was drafted."""

    drafted: list[Drafting]
    caught_up = 0

    def __call__(
        self, rows: Sequence[Row], starts: Sequence[int], lottery: Lottery | None, threshold: float
    ) -> Drafting:
        stepped = self._step_by_step(rows, starts, lottery, threshold)
        native = super().__call__(rows, starts, lottery, threshold)
        assert (native.drafts, native.read) == (stepped.drafts, stepped.read)
        states = [found[order] if order else found for found, order in (native.by_row(), stepped.by_row())]
        assert torch.equal(states[0], states[1].float())
        self.drafted.append(native)
        self.caught_up += any(row.unread and row.budget for row in rows)
        return native


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("fork_layer", [0, 1, 2])
@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_one_call_drafts_what_steps_do(tmp_path: Path, dtype: str, fork_layer: int, threshold: float) -> None:
    """Rows of all kinds together: pictures, text, unpruned, without speculation, other ends, EOS or none."""
    twig = with_draft(TwigShape(fork_layer=fork_layer), 4, threshold)
    world = World.create(tmp_path, Shape(seed=4, upper_scale=0.05, upper_from=fork_layer + 2), twig)
    engine = world.engine(dtype=dtype)
    assert engine._runner.vlm.drafter is not None
    compared = engine._runner._draft = Compared(engine._runner.vlm)
    compared.drafted = []
    requests = [
        ask(
            world.prompt(seed, *parts),
            str(seed),
            max_tokens=6 + 3 * seed,
            retained=[16, 8, None][seed % 3] if IMAGE in parts else None,
            speculation=seed != 2,
        )
        for seed, parts in enumerate(PARTS)
    ]
    run(engine, *requests)
    assert max(len({len(draft) for draft in drafting.drafts}) for drafting in compared.drafted) > 2
    assert compared.caught_up > 0


@pytest.mark.parametrize(
    ("tokens", "position", "budget"),
    [((-1,), 0, 0), ((10_000,), 0, 0), ((7, 7), 0, 0), ((7,), 0, -1), ((7,), 250, 9)],
)
def test_what_does_not_fit_is_refused(
    tame: World, library: Library, tokens: tuple[int, ...], position: int, budget: int
) -> None:
    """The kernels believe what they are given."""
    del library
    drafter = tame.engine()._runner.vlm.drafter
    assert isinstance(drafter, NativeDrafter)
    with pytest.raises(ValueError, match="does not fit"):
        drafter([Draftee(0, tokens, None, position, budget, frozenset())], 0.5)
