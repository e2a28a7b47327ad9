"""Conversations in the format of LLaVA-665K, with pictures of noise."""

from __future__ import annotations

from typing import Any


def said(*turns: str, picture: str | None = None, **more: Any) -> dict[str, Any]:
    values = [f"<image>\n{turns[0]}" if picture else turns[0], *turns[1:]]
    spoken = [{"from": ("human", "gpt")[number % 2], "value": value} for number, value in enumerate(values)]
    return {"id": turns[0], "conversations": spoken} | ({"image": picture} if picture else {}) | more


ITEMS = [
    said("the red cat", "sits at the top", picture="0.png"),
    said("a blue dog", "on the right", "is there a tree?", "yes", picture="1.png"),
    said("is there a dog?", "a blue dog", picture="2.png"),
    said("the cat", "the red cat sits", picture="3.png"),
    said("a tree?", "yes, 日本語", picture="4.png", model="kept by LLaVA-665K"),
    said("where is it?", "at the top left", picture="5.png"),
    said("the left", "the right"),
    said("one", "a dog", "two", "a cat", "three", "a tree"),
]
