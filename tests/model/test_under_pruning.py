"""What the frozen base says with few visual tokens, and that the twig learns from what it loses then."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.train import under_pruning
from model.train.conversations import Conversation
from model.train.lessons import Lessons, twig_loss
from model.train.reading import FrozenBase, Reading
from model.train.twig_module import Twig
from model.train.under_pruning import base_distribution, pruning_loss
from tests.model.harness import World
from tests.model.readings import expanded, hub
from tests.model.tiny import Shape, TwigShape

SHAPE = Shape(max_len=512)
FORK, DROP = 2, 4


@dataclass
class Lesson:
    frozen: FrozenBase
    reading: Reading
    twig: Twig
    ids: list[int]
    pixels: Tensor

    @property
    def ranks(self) -> list[Tensor]:
        return self.twig(self.reading, True)[1]

    def lost(self, ranks: list[Tensor], share: float) -> Tensor:
        """KL from the base's own words to those of the pruned base, a mean over answer tokens."""
        whole = base_distribution(self.frozen, self.reading, ranks, 1.0)
        pruned = base_distribution(self.frozen, self.reading, ranks, share)
        return F.kl_div(pruned.log(), whole, reduction="batchmean")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.create(tmp_path_factory.mktemp("pruned"), SHAPE, TwigShape())


@pytest.fixture
def lesson(world: World, conversations: list[Conversation]) -> Lesson:
    base = hub(world.base_path)
    example, frozen = base.example(conversations[0]), base.frozen(FORK, DROP)
    reading = base.read([example], frozen, 512)
    return Lesson(
        frozen, reading, Twig(base.vlm, FORK, 2), expanded(base, example), example.pixels["pixel_values"]
    )


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_the_bases_own_words_are_those_of_the_pruned_base(lesson: Lesson, world: World, share: float) -> None:
    """The visual tokens that the twig keeps, the layers that see them, and what the base then says."""
    found = base_distribution(lesson.frozen, lesson.reading, lesson.ranks, share)
    plain, ids, pixels = world.reference(), lesson.ids, lesson.pixels
    first = int(lesson.reading.target_at[0]) + 1
    kept = plain.kept(ids[:first], pixels, round(share * SHAPE.visual_tokens))
    for row, at in enumerate(lesson.reading.target_at.tolist()):
        logits = plain.next_logits(ids[:first], ids[first : at + 1], pixels, kept)
        torch.testing.assert_close(found[row], logits.softmax(-1), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("share", [0.5, 0.7])
def test_without_a_lot_the_loss_is_what_the_pruned_base_strays(
    lesson: Lesson, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    monkeypatch.setattr(under_pruning, "SPREAD", 1e-7)
    monkeypatch.setattr(under_pruning, "EVENNESS", 1e-4)
    found = pruning_loss(lesson.frozen, lesson.reading, lesson.ranks, share, draws())
    torch.testing.assert_close(found, lesson.lost(lesson.ranks, share), atol=1e-6, rtol=1e-3)
    assert found > 1e-5


def test_the_budget_is_kept_in_the_mean(lesson: Lesson) -> None:
    visual = lesson.reading.visual[0]
    count = under_pruning._count(visual, lesson.frozen, 0.5)
    rank = torch.rand(len(visual), generator=draws())
    kept = [
        under_pruning._odds(rank, visual, lesson.frozen, 0.5, draws(seed)).exp().sum().item()
        for seed in range(400)
    ]
    assert abs(sum(kept) / len(kept) - count) < 0.1 * count


def test_ranks_learn_which_tokens_the_base_needs(lesson: Lesson) -> None:
    """Led by the loss alone, from ranks that lots have drawn."""
    reading = lesson.reading
    score = torch.randn(1, reading.visual.shape[1], generator=draws(3)).requires_grad_()
    optimizer = torch.optim.Adam([score], 0.1)
    before = lesson.lost([score.detach().softmax(-1)], 0.5)
    for step in range(60):
        optimizer.zero_grad()
        pruning_loss(lesson.frozen, reading, [score.softmax(-1)], 0.5, draws(step)).backward()
        optimizer.step()
    assert lesson.lost([score.detach().softmax(-1)], 0.5) < 0.7 * before


def test_it_teaches_the_twig_and_not_the_base(lesson: Lesson) -> None:
    loss, _ = twig_loss(
        lesson.twig, lesson.frozen, lesson.reading, Lessons(foresight_weight=0.0, pruning_weight=1.0), 0, 0.5
    )
    plain, _ = twig_loss(lesson.twig, lesson.frozen, lesson.reading, Lessons(foresight_weight=0.0), 0, 0.5)
    assert loss > plain
    (loss - plain).backward()
    looks = lesson.twig.model.layers[-1].self_attn
    for projection in (looks.q_proj, looks.k_proj):
        assert projection.weight.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in lesson.frozen.head.parameters())
