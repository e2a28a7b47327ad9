"""What can be said of a scene: its description, and questions with their answers.

Invariants: every sentence is true of the scene; objects are told in reading order of their places; an answer
begins with what has to be looked for. The twig ranks visual tokens by the attention of the last prompt token,
which is where the first word is decided: a first word that needs no picture would teach it to look nowhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from model.scenes.colors import color_of
from model.scenes.compose import Object, Scene
from model.scenes.words import NOUNS, NUMBERS, PLACES, article, at_place, plural

DESCRIBE = "Describe the image."


@dataclass(frozen=True)
class Turn:
    """One question about the picture and its answer."""

    task: str
    prompt: str
    answer: str


def background_phrase(scene: Scene) -> str:
    """ "a striped blue background"; a plain one is named plain."""
    return f"{article(scene.pattern)} {scene.color} background"


def describe(scene: Scene) -> str:
    told = (f"{at_place(o.place).capitalize()} there is a {o.size} {o.noun}." for o in scene.objects)
    return " ".join([f"{_counted(len(scene.objects), 'object')} on {background_phrase(scene)}.", *told])


def in_a_sentence(scene: Scene) -> str:
    """ "A small panda at the top left and a large bee in the center, on a plain red background." """
    told = _join([f"a {o.size} {o.noun} {at_place(o.place)}" for o in scene.objects])
    return f"{_sentence(told)}, on {background_phrase(scene)}."


def listed(scene: Scene) -> str:
    """ "Two pandas and a bee." """
    counts = Counter(thing.noun for thing in scene.objects)
    told = [
        article(noun) if count == 1 else f"{NUMBERS[count]} {plural(noun)}" for noun, count in counts.items()
    ]
    return f"{_sentence(_join(told))}."


def arranged(scene: Scene) -> str:
    """ "The panda is above the bee. The bee is to the left of the cat." Of nouns that are there once."""
    once = [thing for thing in scene.objects if len(_places(scene, thing.noun)) == 1]
    if len(once) < 2:
        return in_a_sentence(scene)
    return " ".join(f"The {a.noun} is {relation(a, b)} the {b.noun}." for a, b in pairwise(once))


def relation(one: Object, other: Object) -> str:
    """Where `one` is from `other`, by their cells: "above", "to the left of", "below and to the right of"."""
    (row, column), (row2, column2) = (divmod(PLACES.index(thing.place), 3) for thing in (one, other))
    parts = []
    if row != row2:
        parts.append("above" if row < row2 else "below")
    if column != column2:
        parts.append("to the left of" if column < column2 else "to the right of")
    return " and ".join(parts)


def _counted(count: int, noun: str) -> str:
    """ "Two pandas", "One panda", "No pandas"."""
    return f"{NUMBERS[count].capitalize()} {noun if count == 1 else plural(noun)}"


# How a description is asked for decides how it is given.
DESCRIPTIONS: dict[str, Callable[[Scene], str]] = {
    DESCRIBE: describe, "Describe the picture.": describe, "Describe this image.": describe,
    "Describe this image in detail.": describe, "What is in the image?": listed, "List the objects.": listed,
    "What do you see?": in_a_sentence, "Describe the image in one sentence.": in_a_sentence,
    "How are the objects arranged?": arranged,
}  # fmt: skip
_USUAL = 0.3  # the share of the usual prompt among them


def ask_describe(scene: Scene, rng: np.random.Generator) -> Turn:
    prompt = DESCRIBE if rng.random() < _USUAL else str(rng.choice(list(DESCRIPTIONS)))
    return Turn("describe", prompt, DESCRIPTIONS[prompt](scene))


def ask_list(scene: Scene, rng: np.random.Generator) -> Turn:
    lists = [prompt for prompt, way in DESCRIPTIONS.items() if way is listed]
    return Turn("describe", str(rng.choice(lists)), listed(scene))


def _pick(scene: Scene, rng: np.random.Generator, present: float) -> str:
    """A noun that is in the scene with probability `present`."""
    there = [thing.noun for thing in scene.objects]
    if rng.random() < present:
        return there[rng.integers(len(there))]
    return str(rng.choice([noun for noun in NOUNS if noun not in there]))


def _places(scene: Scene, noun: str) -> list[str]:
    return [at_place(thing.place) for thing in scene.objects if thing.noun == noun]


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def ask_exists(scene: Scene, rng: np.random.Generator) -> Turn:
    noun = _pick(scene, rng, 0.5)
    ways = ("Is there {}?", "Is there {} in the picture?", "Do you see {}?", "Can you see {}?")
    prompt = str(rng.choice(ways)).format(article(noun))
    answer = f"Yes, there is {article(noun)}." if _places(scene, noun) else f"No, there is no {noun}."
    return Turn("exists", prompt, answer)


def ask_count(scene: Scene, rng: np.random.Generator) -> Turn:
    if rng.random() < 0.2:
        return Turn("count", "How many objects are there?", f"{_counted(len(scene.objects), 'object')}.")
    return _count(scene, _pick(scene, rng, 0.8), rng)


def _count(scene: Scene, noun: str, rng: np.random.Generator) -> Turn:
    answer = f"{_counted(len(_places(scene, noun)), noun)}."
    prompt = str(rng.choice(("How many {} are there?", "How many {} do you see?"))).format(plural(noun))
    return Turn("count", prompt, answer)


def ask_where(scene: Scene, rng: np.random.Generator) -> Turn:
    return _where(scene, _pick(scene, rng, 0.9), rng)


def _where(scene: Scene, noun: str, rng: np.random.Generator) -> Turn:
    places = _places(scene, noun)
    if not places:
        return Turn("where", f"Where is the {noun}?", f"There is no {noun}.")
    where = str(rng.choice(("Where", "Where in the picture")))
    prompt = f"{where} is the {noun}?" if len(places) == 1 else f"{where} are the {plural(noun)}?"
    return Turn("where", prompt, f"{_join(places).capitalize()}.")


def ask_what(scene: Scene, rng: np.random.Generator) -> Turn:
    at = {thing.place: thing for thing in scene.objects}
    place = str(rng.choice(list(at) if rng.random() < 0.8 else PLACES))
    thing = at.get(place)
    answer = f"A {thing.size} {thing.noun}." if thing else "Nothing."
    prompt = str(rng.choice(("What is {}?", "What do you see {}?"))).format(at_place(place))
    return Turn("what", prompt, answer)


def ask_background(scene: Scene, rng: np.random.Generator) -> Turn:
    prompts = ("What is the background?", "What color is the background?", "What is in the background?")
    return Turn("background", str(rng.choice(prompts)), f"{scene.pattern.capitalize()} {scene.color}.")


def ask_size(scene: Scene, rng: np.random.Generator) -> Turn:
    thing = scene.objects[rng.integers(len(scene.objects))]
    if len(_places(scene, thing.noun)) > 1:
        return ask_what(scene, rng)
    return Turn("size", f"How big is the {thing.noun}?", f"{thing.size.capitalize()}.")


def ask_color(scene: Scene, rng: np.random.Generator) -> Turn:
    """Of art that has a dominant colour; of the ground where none has."""
    told = [(o, color) for o in scene.objects if (color := color_of(o)) and len(_places(scene, o.noun)) == 1]
    if not told:
        return ask_background(scene, rng)
    thing, color = told[rng.integers(len(told))]
    return Turn("color", f"What color is the {thing.noun}?", f"{color.capitalize()}.")


QUESTIONS: tuple[Callable[[Scene, np.random.Generator], Turn], ...] = (
    ask_exists, ask_count, ask_where, ask_what, ask_background, ask_size, ask_color,
)  # fmt: skip


def ask_each(scene: Scene, rng: np.random.Generator) -> list[Turn]:
    """How many there are of each noun and of one that is not there, and where those are of which there are
    several.
    """
    counts = Counter(thing.noun for thing in scene.objects)
    asked = [_count(scene, noun, rng) for noun in (*counts, _pick(scene, rng, 0.0))]
    return asked + [_where(scene, noun, rng) for noun, count in counts.items() if count > 1]


def turns(scene: Scene, rng: np.random.Generator, questions: int, descriptions: int = 1) -> list[Turn]:
    """Descriptions and `questions` questions, each about something else where there is enough."""
    order = rng.permutation(len(QUESTIONS))
    asked = [QUESTIONS[order[i % len(order)]](scene, rng) for i in range(questions)]
    return [*(ask_describe(scene, rng) for _ in range(descriptions)), *asked]
