"""What is read of conversations: turns and pictures, and what is wrong told by item and field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model.train.conversations import Conversation, DataError, read_conversations
from tests.model.said import ITEMS, said


def test_what_is_said_becomes_turns(conversations: list[Conversation]) -> None:
    assert conversations[1].turns == (("a blue dog", "on the right"), ("is there a tree?", "yes"))
    assert [conversation.picture is None for conversation in conversations] == [False] * 6 + [True] * 2


@pytest.mark.parametrize(
    ("item", "told"),
    [
        ("text", "is str, not an object"),
        ({"id": 7}, r"\(id 7\): conversations must"),
        (said("q", "a", "q"), "conversations must"),
        ({"conversations": [{"from": "gpt", "value": "q"}] * 2}, r"\[0\]\.from must be 'human'"),
        ({"conversations": [{"from": "human", "value": 3}] * 2}, r"\[0\]\.value must be text"),
        (said("q", " "), r"\[1\]\.value is empty"),
        (said("q", "a", picture="none.png"), "none.png is not there"),
        (said("<image>q", "a"), "no <image>"),
        (said("q", "a", picture="0.png") | {"conversations": said("q", "a")["conversations"]}, "exactly one"),
        (said("q", "<image>", picture="0.png"), r"conversations\[1\]\.value must hold no <image>"),
        (said("q", "a") | {"image": 3}, "image must be the name"),
    ],
)  # fmt: skip
def test_bad_data_names_item_and_field(data: Path, tmp_path: Path, item: Any, told: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(json.dumps([ITEMS[6], item]))
    with pytest.raises(DataError, match=f"item 1.*{told}"):
        read_conversations(path, data.parent)


def test_a_picture_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(b"no picture")
    (tmp_path / "d.json").write_text(json.dumps([ITEMS[0]]))
    (conversation,) = read_conversations(tmp_path / "d.json")
    with pytest.raises(DataError, match=r"item 0 .*0\.png cannot be read"):
        conversation.open_picture()
