"""Ways of pruning: each equals an independent reckoning of what it stands for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlavaForConditionalGeneration

from model.config import EngineConfig
from model.scorers import SCORERS, by_lot, evenly, remembering
from service.cli.evaluating import Method
from tests.model.harness import IMAGE, Prompt, World, ask, run
from tests.model.tiny import Shape, TwigShape


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

    @property
    def key(self) -> int:
        return self.seed


@settings(max_examples=60)
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


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.create(tmp_path_factory.mktemp("scorers"), Shape(seed=5), TwigShape())


def scores(world: World, prompt: Prompt, scorer: str, kernels: str = "torch") -> list[float]:
    engine = world.engine(scorer=scorer, kernels=kernels)
    (result,) = run(engine, ask(prompt, retained=8, max_tokens=4))
    assert result.token_scores is not None
    best = sorted(range(len(result.token_scores)), key=lambda index: -result.token_scores[index])
    assert result.kept_indices == sorted(best[: result.kept_tokens])
    return result.token_scores


def test_a_pictures_lot_is_the_same_on_any_weights_and_behind_any_question(
    world: World, tmp_path: Path
) -> None:
    other, prompt = World.create(tmp_path, Shape(seed=6), TwigShape()), world.prompt(1, 4, IMAGE, 5)
    lot = scores(world, prompt, "random")
    assert scores(other, prompt, "random") == lot
    question = replace(prompt, ids=prompt.ids[:-2], short_ids=prompt.short_ids[:-2])
    assert scores(world, question, "random") == lot
    assert scores(world, replace(prompt, pixels=prompt.pixels + 1), "random") != lot


@torch.no_grad()
def eager(world: World, prompt: Prompt) -> Any:
    vlm = LlavaForConditionalGeneration.from_pretrained(
        world.base_path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    inputs = {"input_ids": torch.tensor([prompt.ids]), "pixel_values": prompt.pixels}
    return vlm, vlm(**inputs, output_attentions=True)


def test_fastv_is_the_bases_own_attention(world: World) -> None:
    """Of base layers K and K+T over the whole prompt, as transformers gives it."""
    prompt = world.prompt(1, 4, IMAGE, 5)
    vlm, output = eager(world, prompt)
    visual = [index for index, token in enumerate(prompt.ids) if token == vlm.config.image_token_id]
    fork, deep = world.twig.fork_layer, world.twig.fork_layer + world.twig.twig_layers
    for scorer, layer in (("fastv", fork), ("fastv_deep", deep)):
        expected = output.attentions[layer][0, :, -1].mean(0)[visual]
        for kernels in ("torch", "auto"):
            found = torch.tensor(scores(world, prompt, scorer, kernels))
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_saliency_is_the_towers_class_attention(world: World) -> None:
    prompt = world.prompt(2, 4, IMAGE, 5, IMAGE, 3)
    vlm, _ = eager(world, prompt)
    with torch.no_grad():
        looks = vlm.model.vision_tower(prompt.pixels, output_attentions=True).attentions[-1]
    expected = looks[:, :, 0, 1:].mean(1).flatten()
    engine = world.engine(scorer="saliency", kernels="torch")
    (result,) = run(engine, ask(prompt, retained=16, max_tokens=4))
    torch.testing.assert_close(torch.tensor(result.token_scores), expected, atol=1e-5, rtol=1e-4)


def test_an_unknown_scorer_names_the_known() -> None:
    with pytest.raises(ValueError, match=r"ttp.*random.*grid.*fastv.*saliency"):
        EngineConfig(scorer="best")


def test_the_command_offers_every_scorer() -> None:
    assert [method.value for method in Method] == list(SCORERS)


def test_a_layer_that_is_not_there_is_named(world: World) -> None:
    deep = world.retwig("deep", TwigShape(fork_layer=4, drop_layer=5, retained_tokens=None))
    (result,) = run(deep.engine(scorer="fastv_deep"), ask(world.prompt(1, 4, IMAGE, 5), retained=12))
    assert result.finish_reason == "error"
    assert "no layer 6" in str(result.error)


def test_one_engine_is_tuned_to_every_way(world: World) -> None:
    """As if it had been loaded for that way; what a prompt's scores are is reckoned once for all budgets."""
    prompt, engine = world.prompt(3, 4, IMAGE, 5), world.engine(draft_tokens=5)
    for name, scorer in SCORERS.items():
        asked: list[int] = []

        def count(view: Any, scorer: Any = scorer, asked: list[int] = asked) -> Any:
            asked.append(view.key)
            return scorer(view)

        engine.tune(remembering(count), 2, 0.0)
        for retained in (8, 7):
            (result,) = run(engine, ask(prompt, retained=retained, max_tokens=6))
            loaded = world.engine(scorer=name, draft_tokens=2, draft_threshold=0.0)
            (expected,) = run(loaded, ask(prompt, retained=retained, max_tokens=6))
            assert result.token_ids == expected.token_ids
            assert result.kept_indices == expected.kept_indices
            assert result.draft_tokens == expected.draft_tokens
        assert len(asked) == 1
    with pytest.raises(ValueError, match=r"0\.\.5"):
        engine.tune(SCORERS["ttp"], 6, 0.5)
