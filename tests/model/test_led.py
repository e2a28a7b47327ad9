"""What a question is about: known of a scene, and what foresight makes of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.pruning import top_scores
from model.scenes.compose import CELL_PX, GRID, Object, Scene, object_patches, patches_of
from model.scenes.language import QUESTIONS, Turn, turns
from model.scenes.words import PLACES
from model.train.batches import IMAGE_TOKENS, asked_about
from model.train.lessons import ABOUT, ASIDE, GROUND, led


def thing(noun: str, place: str) -> Object:
    row, column = divmod(PLACES.index(place), 3)
    return Object(noun, "small", place, 0, column * CELL_PX, row * CELL_PX, 40, False)


PANDA, BEE, CAT = thing("panda", "top left"), thing("bee", "center"), thing("cat", "bottom right")
SCENE = Scene((PANDA, BEE, CAT), "red", "plain")
EVERY = np.arange(IMAGE_TOKENS)


def asked(question: Turn) -> set[str]:
    return {known.noun for known in question.about}


@pytest.mark.parametrize("ask", QUESTIONS)
def test_a_question_is_about_what_it_names(ask: object) -> None:
    rng = np.random.default_rng(0)
    for question in (ask(SCENE, rng) for _ in range(60)):  # type: ignore[operator]
        named = {one.noun for one in SCENE.objects if one.noun in question.prompt}
        at = {one.noun for one in SCENE.objects if f"{one.place}?" in question.prompt}
        assert asked(question) == named | (at if question.task == "what" else set()), question.prompt


def test_all_objects_or_none_is_about_nothing_in_particular() -> None:
    rng = np.random.default_rng(1)
    told = turns(SCENE, rng, 0, descriptions=9)
    assert not any(turn.about for turn in told)
    about = asked_about(SCENE, told, EVERY)
    assert about.shape == (9, GRID * GRID)
    assert not about.any()


def test_tokens_show_what_is_asked_about_the_ground_or_something_else() -> None:
    (about,) = asked_about(SCENE, [Turn("where", "Where is the bee?", "In the center.", (BEE,))], EVERY)
    assert torch.equal(about == ABOUT, torch.from_numpy(patches_of(BEE)))
    assert torch.equal(about == GROUND, torch.from_numpy(~object_patches(SCENE)))
    assert torch.equal(about == ASIDE, torch.from_numpy(patches_of(PANDA) | patches_of(CAT)))
    few = np.array([0, 300, 575])
    assert asked_about(SCENE, [Turn("where", "", "", (BEE,))], few).tolist() == [about[few].tolist()]


def test_the_led_look_keeps_what_is_asked_about_and_drops_the_others_first() -> None:
    draw = torch.Generator().manual_seed(0)
    look = torch.rand((2, IMAGE_TOKENS), generator=draw).softmax(-1)
    about = asked_about(SCENE, [Turn("where", "", "", (BEE,)), Turn("describe", "", "")], EVERY)
    towards, whole = led(look, about)
    assert torch.equal(whole, look[1])
    torch.testing.assert_close(towards.sum(), torch.tensor(1.0))
    bee, others = (
        set(np.flatnonzero(patches_of(BEE))),
        set(torch.nonzero(about[0] == ASIDE).flatten().tolist()),
    )
    assert bee <= set(top_scores(towards.tolist(), len(bee)))
    assert not others & set(top_scores(towards.tolist(), IMAGE_TOKENS - len(others)))
    asked_first = [index for index in top_scores(look[0].tolist(), IMAGE_TOKENS) if index in bee]
    order = towards[asked_first].argsort().tolist()
    assert order == look[0][asked_first].argsort().tolist(), "among them as foresight has it"
