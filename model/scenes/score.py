"""Marks answers about scenes: right or wrong for questions, precision, recall and place for descriptions."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from model.scenes.compose import Scene
from model.scenes.words import PLACES, SIZES, at_place

_PLACE = "|".join(at_place(place) for place in sorted(PLACES, key=len, reverse=True))
_THING = rf"an? (?P<size>{'|'.join(SIZES)}) (?P<noun>\w+)"
# Both ways in which a description places an object.
_TOLD = (
    re.compile(rf"(?P<place>{_PLACE}) there is {_THING}\.", re.IGNORECASE),
    re.compile(rf"{_THING} (?P<place>{_PLACE})", re.IGNORECASE),
)
_PLACE_OF = {at_place(place): place for place in PLACES}


@dataclass(frozen=True)
class DescriptionScore:
    """Counts over one description. placed, sized: objects told in the right place, with the right size."""

    objects: int
    said: int
    named: int
    placed: int
    sized: int
    background: bool


def read_description(text: str) -> list[tuple[str, str, str]]:
    """(place, size, noun) of each object that is placed."""
    found = next((some for pattern in _TOLD if (some := list(pattern.finditer(text)))), [])
    return [(_PLACE_OF[m["place"].lower()], m["size"].lower(), m["noun"].lower()) for m in found]


def score_description(scene: Scene, text: str) -> DescriptionScore:
    """An object is named if its noun is said as often as it is there; placed if said at its place."""
    said = read_description(text)
    there = Counter(thing.noun for thing in scene.objects)
    named = there & Counter(noun for _, _, noun in said)
    places = {(place, noun): size for place, size, noun in said}
    placed = [thing for thing in scene.objects if (thing.place, thing.noun) in places]
    sized = sum(places[thing.place, thing.noun] == thing.size for thing in placed)
    ground = f"{scene.pattern} {scene.color} background" in text
    return DescriptionScore(len(scene.objects), len(said), named.total(), len(placed), sized, ground)


def same_answer(said: str, truth: str) -> bool:
    """Equal but for case, punctuation and articles, as VQA's metric has it."""
    return _bare(said) == _bare(truth)


def _bare(answer: str) -> list[str]:
    return [word for word in re.findall(r"[\w']+", answer.casefold()) if word not in ("a", "an", "the")]
