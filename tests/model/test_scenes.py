"""Scenes: the same seed gives the same scene, what is said is true, what is drawn is where it is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from model.scenes.art import SPRITE_PX
from model.scenes.colors import color_name, dominant
from model.scenes.compose import (
    CELL_PX,
    GRID,
    IGNORE,
    IMAGE_PX,
    PATCH_PX,
    TEST_SEEDS,
    Object,
    Scene,
    draw,
    random_scene,
)
from model.scenes.language import (
    QUESTIONS,
    arranged,
    ask_color,
    ask_each,
    ask_list,
    describe,
    in_a_sentence,
    listed,
    relation,
    turns,
)
from model.scenes.score import read_description, score_description
from model.scenes.words import NOUNS, PLACES, STYLES, article, plural

SAMPLES = Path(__file__).parents[2] / "docs" / "samples"


@pytest.fixture(scope="module")
def sprites() -> np.ndarray:
    """Opaque squares in random colours: art enough to see where something was drawn."""
    art = np.zeros((len(NOUNS), len(STYLES), SPRITE_PX, SPRITE_PX, 4), np.uint8)
    art[..., :3] = np.random.default_rng(0).integers(0, 255, (len(NOUNS), len(STYLES), 1, 1, 3))
    art[..., 3] = 255
    return art


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("seed", range(20))
def test_objects_stay_in_their_cells(seed: int) -> None:
    for thing in random_scene(rng(seed)).objects:
        row, column = divmod(PLACES.index(thing.place), 3)
        assert column * CELL_PX <= thing.x
        assert thing.x + thing.px <= (column + 1) * CELL_PX
        assert row * CELL_PX <= thing.y
        assert thing.y + thing.px <= (row + 1) * CELL_PX


def test_a_seed_is_a_scene(sprites: np.ndarray) -> None:
    first, second = (draw(random_scene(r), sprites, r)[0] for r in (rng(5), rng(5)))
    assert np.array_equal(first, second)
    assert first.shape == (IMAGE_PX, IMAGE_PX, 3)


def test_patch_labels_name_what_covers_the_patch(sprites: np.ndarray) -> None:
    scene = random_scene(rng(3))
    labels = draw(scene, sprites, rng(3))[1].noun.reshape(GRID, GRID)
    for thing in scene.objects:
        middle = labels[(thing.y + thing.px // 2) // PATCH_PX, (thing.x + thing.px // 2) // PATCH_PX]
        assert middle == 1 + NOUNS.index(thing.noun)
    named = set(labels[labels > 0] - 1)
    assert named == {NOUNS.index(thing.noun) for thing in scene.objects}


def test_a_window_is_a_cut_of_the_whole(sprites: np.ndarray) -> None:
    scene = random_scene(rng(8))
    whole = draw(scene, sprites, rng(0))[1].noun.reshape(GRID, GRID)
    window = draw(scene, sprites, rng(0), (64, 32, 96))[1].noun.reshape(12, 12)
    assert np.array_equal(window, whole[4:16, 8:20])
    assert IGNORE not in np.unique(window[window > 0])


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("told", [describe, in_a_sentence])
def test_a_description_scores_full_marks_on_its_scene(seed: int, told: Callable[[Scene], str]) -> None:
    scene = random_scene(rng(seed))
    score = score_description(scene, told(scene))
    assert score.objects == score.said == score.named == score.placed == score.sized
    assert score.background


def a_scene(*things: tuple[str, str, str]) -> Scene:
    """things: noun, size, place."""
    objects = tuple(Object(noun, size, place, 0, 0, 0, 40, False) for noun, size, place in things)
    return Scene(objects, "red", "plain")


def test_what_is_said_is_english() -> None:
    scene = a_scene(
        ("wolf", "small", "top left"), ("owl", "large", "right"), ("wolf", "large", "bottom left"),
        ("unicorn", "small", "bottom"),
    )  # fmt: skip
    assert listed(scene) == "Two wolves, an owl and a unicorn."
    assert in_a_sentence(scene) == (
        "A small wolf at the top left, a large owl on the right, a large wolf at the bottom left and "
        "a small unicorn at the bottom, on a plain red background."
    )
    assert arranged(scene) == "The owl is above and to the right of the unicorn."
    assert arranged(a_scene(("cat", "small", "top"))) == "A small cat at the top, on a plain red background."


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ("left", "right", "to the left of"),
        ("bottom", "top", "below"),
        ("top right", "center", "above and to the right of"),
    ],
)
def test_relations_follow_the_cells(one: str, other: str, said: str) -> None:
    scene = a_scene(("cat", "small", one), ("dog", "small", other))
    assert relation(*scene.objects) == said


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((0.9, 0.1, 0.1), "red"), ((0.1, 0.6, 0.2), "green"), ((0.95, 0.95, 0.95), "white"),
        ((0.1, 0.1, 0.1), "black"), ((0.5, 0.3, 0.15), "brown"), ((1.0, 0.6, 0.7), "pink"),
    ],
)  # fmt: skip
def test_colors_have_the_names_that_people_give_them(rgb: tuple[float, float, float], name: str) -> None:
    assert color_name(*rgb) == name
    sprite = np.full((SPRITE_PX, SPRITE_PX, 4), 255, np.uint8)
    sprite[..., :3] = np.round(np.array(rgb) * 255)
    assert dominant(sprite) == name
    sprite[:, : SPRITE_PX // 2, :3] = (20, 60, 220)
    assert dominant(sprite) is None


def test_only_art_with_one_colour_is_asked_for_it() -> None:
    assert ask_color(a_scene(("apple", "small", "top")), rng(0)).answer == "Red."
    assert ask_color(a_scene(("bee", "small", "top")), rng(0)).task == "background"


def test_a_wrong_description_loses_marks() -> None:
    scene = random_scene(rng(9004))
    text = describe(scene).replace("apple", "pear").replace("At the bottom right", "At the bottom left")
    score = score_description(scene, text)
    assert (score.objects, score.named, score.placed) == (5, 4, 3)
    assert len(read_description(text)) == 5


@pytest.mark.parametrize("seed", range(10))
def test_every_kind_of_question_is_asked(seed: int) -> None:
    generator = rng(seed)
    asked = turns(random_scene(generator), generator, len(QUESTIONS))
    assert asked[0].task == "describe"
    assert all(turn.prompt.endswith(("?", ".")) and turn.answer.endswith(".") for turn in asked)
    assert {"exists", "count", "where", "background"} <= {turn.task for turn in asked}


def test_each_noun_is_asked_for_and_one_that_is_not_there() -> None:
    scene = a_scene(("bee", "small", "top"), ("fox", "large", "left"), ("bee", "large", "bottom"))
    asked = {turn.prompt.split(" are ")[0].split(" do ")[0]: turn.answer for turn in ask_each(scene, rng(3))}
    absent = next(answer for answer in asked.values() if answer.startswith("No "))
    assert sorted(asked.values()) == sorted(
        ["Two bees.", "One fox.", "At the top and at the bottom.", absent]
    )
    assert absent not in ("No bees.", "No foxes.")


def test_a_list_is_asked_for_in_its_own_words() -> None:
    scene = a_scene(("bee", "small", "top"), ("owl", "large", "left"), ("bee", "large", "bottom"))
    asked = [ask_list(scene, rng(seed)) for seed in range(8)]
    assert {turn.prompt for turn in asked} == {"What is in the image?", "List the objects."}
    assert {turn.answer for turn in asked} == {"Two bees and an owl."}


def test_nouns_are_plenty_and_distinct() -> None:
    assert len(NOUNS) == len(set(NOUNS)) >= 150
    assert plural("wolf") == "wolves"
    assert (article("apple"), article("unicorn"), article("dog")) == ("an apple", "a unicorn", "a dog")


def test_samples_are_held_out_and_match_their_seed() -> None:
    """The sample pictures say in JSON what their scenes hold; a drift of the composer would show here."""
    truths = sorted(SAMPLES.glob("*.json"))
    assert truths
    for path in truths:
        truth = json.loads(path.read_text())
        assert truth["seed"] in TEST_SEEDS
        scene = random_scene(rng(truth["seed"]))
        assert [o["noun"] for o in truth["objects"]] == [o.noun for o in scene.objects]
        assert truth["background"] == f"{scene.pattern} {scene.color}"
