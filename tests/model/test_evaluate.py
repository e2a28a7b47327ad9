"""Evaluation: reserved seeds, marks that are right for right answers, own data that names what is wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from model.evaluate import page as page_module
from model.evaluate import run as run_module
from model.evaluate.answers import Answer, Answers, fingerprint
from model.evaluate.intervals import ahead, tally
from model.evaluate.items import ITEMS_A_SCENE, SEEDS, Item, own_items, scenes_bench
from model.evaluate.marks import description_parts, task_scores
from model.evaluate.run import Asker, Loader
from model.evaluate.tables import markdown, with_rel_acc
from model.scenes.art import SPRITE_PX, unseen_path
from model.scenes.compose import TRAIN_SEEDS
from model.scenes.language import QUESTIONS
from model.scenes.score import same_answer
from model.scenes.words import NOUNS, STYLES
from model.scorers import SCORERS
from service.cli import app
from tests.model.harness import World
from tests.model.tiny import Shape, TwigShape

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


def answered(texts: list[str]) -> list[Answer]:
    return [Answer(text, rounds=2, drafted=4, accepted=3, tokens=5, decode_s=0.1) for text in texts]


def test_no_split_shares_a_seed_with_training_or_another() -> None:
    assert max(max(seeds) for seeds in SEEDS.values()) < TRAIN_SEEDS
    assert not set(SEEDS["test"]) & set(SEEDS["validation"])


def test_every_scene_is_described_and_every_task_asked(items: list[Item]) -> None:
    tasks = [item.turn.task for item in items]
    assert tasks.count("describe") == SCENES
    assert len(tasks) == SCENES * ITEMS_A_SCENE
    each = SCENES * (ITEMS_A_SCENE - 1) / len(QUESTIONS)
    counts = {task: tasks.count(task) for task in set(tasks) - {"describe"}}
    # Of a thing that is there twice no size can be asked: what stands somewhere is asked instead; and where
    # no art has a colour of its own, the ground's.
    pairs = [("exists",), ("count",), ("where",), ("size", "what"), ("color", "background")]
    assert set(counts) == {task for pair in pairs for task in pair}
    for pair in pairs:
        assert abs(sum(counts[task] for task in pair) - len(pair) * each) < len(pair)


def test_items_are_told_apart_by_picture_and_question(items: list[Item]) -> None:
    assert len({item.key for item in items}) > 0.95 * len(items)


def test_the_unseen_split_draws_what_its_art_has(sprites: Path) -> None:
    unseen = scenes_bench(sprites, SCENES, "unseen")
    said = {thing.noun for item in unseen if item.scene for thing in item.scene.objects}
    assert said <= set(NOUNS[:12])


def test_too_many_scenes_name_the_limit(sprites: Path) -> None:
    with pytest.raises(ValueError, match="at most 10000"):
        scenes_bench(sprites, 10_001)


def test_the_truth_has_full_marks(items: list[Item]) -> None:
    results = answered([item.turn.answer for item in items])
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
    assert markdown([entry]).splitlines()[-1] == "| ttp | 64 | 0.5000 | 0.250 | 0.125 | 0.750 | 3.50 |"


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
    results = answered(["Black.", "white"])
    assert task_scores([first, second], results) == {"color": 0.0, "question": 1.0}
    assert description_parts([first, second], results) == {}


@pytest.mark.parametrize(
    "entry",
    [
        {"image": "a.png"},
        "a.png",
        {"image": "a.png", "question": "?", "answer": 3},
        {"a": 1},
        {"image": "not-there.png", "question": "?", "answer": "yes"},
    ],
)
def test_what_is_wrong_with_own_items_is_named(tmp_path: Path, entry: object) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([entry]))
    with pytest.raises(ValueError, match="entry 0"):
        own_items(path)


def test_answers_survive_a_run_that_was_cut_off(tmp_path: Path) -> None:
    """The line that was being written is lost, and nothing else."""
    path, (first, second) = tmp_path / "runs" / "answers.jsonl", answered(["one", "two"])
    Answers(path, "weights").put("ttp/64", {"a": first, "b": second})
    path.write_text(path.read_text()[:-9])
    again = Answers(path, "weights")
    assert (again.get("ttp/64", "a"), again.get("ttp/64", "b")) == (first, None)
    again.put("ttp/64", {"b": second})
    assert Answers(path, "weights").get("ttp/64", "b") == second
    assert again.get("ttp/128", "a") is None


def test_answers_of_other_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"1")
    before = fingerprint(tmp_path, None)
    Answers(tmp_path / "answers.jsonl", before)
    (tmp_path / "model.safetensors").write_bytes(b"other")
    with pytest.raises(ValueError, match="another checkpoint"):
        Answers(tmp_path / "answers.jsonl", fingerprint(tmp_path, None))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--page", "p.md", "--data", "d.json"], "--page"),
        (["--page", "p.md", "--split", "unseen"], "--page"),
        (["--model-card", "c.md", "--split", "validation"], "--model-card"),
        (["--data", "d.json", "--split", "unseen"], "not both"),
        (["--images", "."], "--data"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], said: str
) -> None:
    """A page that tells of the test split was written over whatever items were asked."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.json").write_text("[]")
    done = CliRunner().invoke(app, ["evaluate", *options])
    assert done.exit_code == 2
    assert said in done.output
    assert not (tmp_path / "p.md").exists()


@pytest.fixture
def loader(tmp_path: Path) -> Loader:
    world = World.create(tmp_path / "world", Shape(), TwigShape())
    return Loader(str(world.base_path), str(world.twig_path), "cpu", "float32", 1)


def test_every_method_is_asked_once_and_a_second_run_asks_nothing(
    loader: Loader, items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "answers.jsonl"
    some, engine = items[:4], loader.engine()
    asker = Asker(engine, Answers(path, loader.fingerprint))
    ways = asker.plan(None, [8], some[0])
    assert [way.method for way in ways] == ["none", *SCORERS]
    ticks: list[int] = []
    asker.ask(ways, some, ticks.append)
    assert sum(ticks) == len(ways) * len(some)
    entries = [asker.entry(way, some) for way in ways]
    again = Asker(engine, Answers(path, loader.fingerprint))
    monkeypatch.setattr(engine, "generate", lambda _requests: pytest.fail("asked again"))
    again.ask(ways, some)
    assert [again.entry(way, some) for way in ways] == entries


def test_a_base_without_a_twig_is_evaluated_unpruned_alone(loader: Loader, items: list[Item]) -> None:
    bare = replace(loader, twig=None)
    asker = Asker(bare.engine(), Answers())
    assert [way.method for way in asker.plan(None, None, items[0])] == ["none"]
    with pytest.raises(ValueError, match="no twig"):
        asker.plan(["ttp"], None, items[0])


def test_the_page_says_what_was_asked(
    loader: Loader, sprites: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random weights have no task right; a mark is made up, to have anything to divide by."""
    monkeypatch.setattr(page_module, "UNSEEN_BUDGETS", (8,))
    monkeypatch.setattr(page_module, "DRAFTING_BUDGETS", (16, 8))
    monkeypatch.setattr(run_module, "task_scores", lambda _items, _answers: {"describe": 0.5})
    monkeypatch.setattr(run_module, "MAX_TOKENS", 8)
    ablations = tmp_path / "ablations.json"
    ablations.write_text(json.dumps({"about": "Short runs.", "columns": ["variant"], "rows": [["T=3"]]}))
    run = page_module.PageRun(loader, sprites, 1, Answers(), ablations)
    asker = Asker(loader.engine(), run.answers)
    plan = run.plan(asker, ["ttp", "grid"], [8])
    ticks: list[int] = []
    page = tmp_path / "docs" / "accuracy.md"
    entries = page_module.write_page(page, run, asker, plan, ticks.append)
    assert sum(ticks) == plan.asked
    assert [entry["method"] for entry in entries] == ["none", "ttp", "grid"]
    text = page.read_text()
    assert "seeds 0 to 0." in text
    assert "| T=3 |" in text
    assert text.count("| 0.8 | 7 |") == 2
    assert {path.name for path in page.parent.iterdir()} == {"accuracy.md", "accuracy.png", "acceptance.png"}


def test_a_lead_is_told_from_chance(items: list[Item]) -> None:
    truth = [item.turn.answer for item in items]
    whole = tally(items, answered(truth))
    assert ahead(whole, whole, whole) == (0.0, 0.0)
    half = tally(items, answered([text if n % 2 else "" for n, text in enumerate(truth)]))
    low, high = ahead(whole, half, whole)
    assert 0.3 < low < high < 0.7
    one = tally(items, answered(["", *truth[1:]]))
    low, high = ahead(whole, one, whole)
    assert low == 0.0 < high
