"""Worlds shared by the tests of `model/`: made once a session, a second or two in all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast

from model.native.library import Library, load_library
from model.scenes.art import SPRITE_PX
from model.scenes.words import NOUNS, STYLES
from model.train.conversations import Conversation, read_conversations
from model.train.tokenizer import make_tokenizer
from tests.model.harness import World
from tests.model.reference import Reference
from tests.model.said import ITEMS
from tests.model.tiny import Shape, TwigShape


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny matrices gain nothing from a second thread, and the order of sums stays fixed."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """The embedded model's."""
    return make_tokenizer()


@pytest.fixture(scope="session")
def sprites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Art of noise."""
    path = tmp_path_factory.mktemp("art") / "sprites.npy"
    shape = (len(NOUNS), len(STYLES), SPRITE_PX, SPRITE_PX, 4)
    np.save(path, np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8))
    return path


@pytest.fixture(scope="session")
def wild(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Every layer matters, so pruning changes answers and the copied twig is mostly wrong."""
    return World.create(tmp_path_factory.mktemp("wild"), Shape(seed=0), TwigShape())


@pytest.fixture(scope="session")
def tame(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The upper layers write little, so the copied twig is often right; some answers end in EOS."""
    return World.create(tmp_path_factory.mktemp("tame"), Shape(seed=1, upper_scale=0.3), TwigShape())


@pytest.fixture(scope="session")
def wild_reference(wild: World) -> Reference:
    return wild.reference()


@pytest.fixture(scope="session")
def tame_reference(tame: World) -> Reference:
    return tame.reference()


@pytest.fixture(scope="session", params=["wild", "tame"])
def world(request: pytest.FixtureRequest) -> World:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def library() -> Library:
    found = load_library()
    if found is None:
        pytest.skip("no native kernels on this machine")
    return found


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("conversations")
    draw = np.random.default_rng(0)
    for number in range(6):
        size = (24 + 8 * number, 40, 3)
        Image.fromarray(draw.integers(0, 256, size, dtype=np.uint8)).save(folder / f"{number}.png")
    (folder / "data.json").write_text(json.dumps(ITEMS))
    return folder / "data.json"


@pytest.fixture(scope="session")
def conversations(data: Path) -> list[Conversation]:
    return read_conversations(data)
