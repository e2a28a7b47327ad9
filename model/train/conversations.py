"""Training data in the LLaVA-665K format: conversations about a picture, or about none.

`[{"id", "image": "a/b.jpg", "conversations": [{"from": "human", "value": "<image>\\n…"}, {"from": "gpt",
"value": "…"}, …]}]`; an item of text alone has no image. Other keys of an item are not read.
Invariant: what is wrong is told before training starts, by item and field. No torch here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

PLACEHOLDER = "<image>"
ROLES = ("human", "gpt")


class DataError(ValueError):
    """Names the item and the field."""


@dataclass(frozen=True)
class Conversation:
    """turns: what was asked and answered, the placeholder taken out. picture: of the first question."""

    name: str
    turns: tuple[tuple[str, str], ...]
    picture: Path | None

    def open_picture(self) -> Image.Image:
        assert self.picture is not None  # noqa: S101  the caller asks only where there is one
        try:
            with Image.open(self.picture) as picture:
                return picture.convert("RGB")
        except (OSError, ValueError, SyntaxError) as error:
            raise DataError(f"{self.name}: image {self.picture} cannot be read: {error}") from error


def read_conversations(path: Path, images: Path | None = None) -> list[Conversation]:
    """images: the folder that items' images are in; that of the file by default."""
    try:
        items = json.loads(path.read_text())
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    if not isinstance(items, list) or not items:
        raise DataError(f"{path} must hold a JSON list of at least one item")
    folder = images or path.parent
    return [_conversation(item, _name(path, number, item), folder) for number, item in enumerate(items)]


def _name(path: Path, number: int, item: Any) -> str:
    known = f" (id {item['id']!r})" if isinstance(item, dict) and "id" in item else ""
    return f"{path} item {number}{known}"


def _conversation(item: Any, name: str, folder: Path) -> Conversation:
    if not isinstance(item, dict):
        raise DataError(f"{name} is {type(item).__name__}, not an object")
    said = item.get("conversations")
    if not isinstance(said, list) or not said or len(said) % 2:
        raise DataError(f"{name}: conversations must be a list of questions and answers in turn")
    values = [_value(entry, ROLES[i % 2], f"{name}: conversations[{i}]") for i, entry in enumerate(said)]
    picture = _picture(item.get("image"), name, folder)
    _check_placeholders(values, picture, name)
    questions = [_without_placeholder(value) for value in values[::2]]
    return Conversation(name, tuple(zip(questions, values[1::2], strict=True)), picture)


def _value(entry: Any, role: str, name: str) -> str:
    if not isinstance(entry, dict):
        raise DataError(f"{name} is {type(entry).__name__}, not an object")
    if entry.get("from") != role:
        raise DataError(f"{name}.from must be {role!r}, not {entry.get('from')!r}")
    value = entry.get("value")
    if not isinstance(value, str):
        raise DataError(f"{name}.value must be text, not {type(value).__name__}")
    if not value.strip():
        raise DataError(f"{name}.value is empty")
    return value


def _picture(value: Any, name: str, folder: Path) -> Path | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        raise DataError(f"{name}: image must be the name of a file")
    path = folder / value
    if not path.is_file():
        raise DataError(f"{name}: image {path} is not there")
    return path


def _check_placeholders(values: Sequence[str], picture: Path | None, name: str) -> None:
    """One in the first question where there is a picture, none anywhere else."""
    wanted = 0 if picture is None else 1
    if values[0].count(PLACEHOLDER) != wanted:
        what = "exactly one" if wanted else "no"
        has = "an image" if wanted else "no image"
        raise DataError(
            f"{name}: conversations[0].value must hold {what} {PLACEHOLDER}, since the item has {has}"
        )
    for number, value in enumerate(values[1:], 1):
        if PLACEHOLDER in value:
            raise DataError(f"{name}: conversations[{number}].value must hold no {PLACEHOLDER}")


def _without_placeholder(question: str) -> str:
    return question.replace(f"{PLACEHOLDER}\n", "").replace(f"\n{PLACEHOLDER}", "").replace(PLACEHOLDER, "")
