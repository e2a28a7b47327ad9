"""Evaluation: reserved seeds, marks that are right for right answers, own data that names what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.evaluate.items import SEEDS, Item, own_items, scenes_bench
from model.evaluate.marks import description_parts, task_scores
from model.evaluate.tables import markdown, with_rel_acc
from model.request import Result
from model.scenes.art import SPRITE_PX, unseen_path
from model.scenes.compose import TRAIN_SEEDS
from model.scenes.score import same_answer
from model.scenes.words import NOUNS, STYLES

SCENES = 30


@pytest.fixture(scope="module")
def sprites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("art") / "sprites.npy"
    art = np.random.default_rng(0).integers(1, 255, (len(NOUNS), 1, 8, 8, 4), dtype=np.uint8)
    art = art.repeat(SPRITE_PX // 8, 2).repeat(SPRITE_PX // 8, 3)
    np.save(path, np.broadcast_to(art, (len(NOUNS), len(STYLES), *art.shape[2:])))
    art[12:] = 0  # the unseen set has the first nouns alone
    np.save(unseen_path(path), art)
    return path


@pytest.fixture(scope="module")
def items(sprites: Path) -> list[Item]:
    return scenes_bench(sprites, SCENES)


def answered(items: list[Item], texts: list[str]) -> list[Result]:
    return [Result(str(number), text=text) for number, text in enumerate(texts)]


def test_no_split_shares_a_seed_with_training_or_another() -> None:
    assert max(max(seeds) for seeds in SEEDS.values()) < TRAIN_SEEDS
    assert not set(SEEDS["test"]) & set(SEEDS["validation"])


def test_every_scene_is_described_and_every_task_asked(items: list[Item]) -> None:
    tasks = [item.turn.task for item in items]
    assert tasks.count("describe") == SCENES
    assert {task: tasks.count(task) for task in set(tasks) - {"describe"}} == dict.fromkeys(
        ("exists", "count", "where", "what", "background"), SCENES // 5
    )


def test_the_unseen_split_draws_what_its_art_has(sprites: Path) -> None:
    unseen = scenes_bench(sprites, SCENES, "unseen")
    said = {thing.noun for item in unseen if item.scene for thing in item.scene.objects}
    assert said <= set(NOUNS[:12])


def test_too_many_scenes_name_the_limit(sprites: Path) -> None:
    with pytest.raises(ValueError, match="at most 10000"):
        scenes_bench(sprites, 10_001)


def test_the_truth_has_full_marks(items: list[Item]) -> None:
    results = answered(items, [item.turn.answer for item in items])
    assert set(task_scores(items, results).values()) == {1.0}
    assert description_parts(items, results) == dict.fromkeys(("recall", "precision", "place", "size"), 1.0)


def test_rel_acc_is_the_mean_over_what_the_whole_model_can(items: list[Item]) -> None:
    whole = {"tasks": {"describe": 0.8, "count": 0.5, "exists": 0.0}}
    (entry,) = with_rel_acc([{"tasks": {"describe": 0.4, "count": 0.5, "exists": 0.3}}], whole)
    assert entry["rel_acc"] == pytest.approx((0.5 + 1.0) / 2)
    with pytest.raises(ValueError, match="nothing to compare"):
        with_rel_acc([], {"tasks": {"describe": 0.0}})


def test_a_page_has_a_row_an_entry() -> None:
    entry = {
        "method": "ttp", "retained_tokens": 64, "rel_acc": 0.5, "tasks": {"describe": 0.25},
        "description": {"recall": 0.125}, "acceptance": 0.75, "tokens_per_round": 3.5,
    }  # fmt: skip
    assert markdown([entry]).splitlines()[-1] == "| ttp | 64 | 0.500 | 0.250 | 0.125 | 0.750 | 3.50 |"


@pytest.mark.parametrize(
    ("said", "truth", "same"),
    [
        ("Two pandas.", "two pandas", True),
        ("The panda", "a panda.", True),
        ("At the top left.", "at the top", False),
        ("", "no", False),
    ],
)
def test_answers_match_as_vqa_has_it(said: str, truth: str, same: bool) -> None:
    assert same_answer(said, truth) is same


def test_own_items_are_read_beside_their_list(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    entry = {"image": "a.png", "question": "What color?", "answer": "black"}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([entry, entry | {"task": "color"}]))
    first, second = own_items(path)
    assert (first.turn.task, second.turn.task) == ("question", "color")
    results = answered([first, second], ["Black.", "white"])
    assert task_scores([first, second], results) == {"color": 0.0, "question": 1.0}
    assert description_parts([first, second], results) == {}


@pytest.mark.parametrize(
    "entry", [{"image": "a.png"}, "a.png", {"image": "a.png", "question": "?", "answer": 3}, {"a": 1}]
)
def test_what_is_wrong_with_own_items_is_named(tmp_path: Path, entry: object) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([entry]))
    with pytest.raises(ValueError, match="entry 0"):
        own_items(path)
