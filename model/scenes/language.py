"""What can be said of a scene: its description, and questions with their answers.

Invariants: every sentence is true of the scene; objects are told in reading order of their places; an answer
begins with what has to be looked for. The twig ranks visual tokens by the attention of the last prompt token,
which is where the first word is decided: a first word that needs no picture would teach it to look nowhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from model.scenes.compose import Scene
from model.scenes.words import NOUNS, NUMBERS, PLACES, article, at_place, plural

DESCRIBE = "Describe the image."
_DESCRIBE_ALIKE = (
    DESCRIBE, "Describe the picture.", "Describe this image.", "What is in the image?",
    "What do you see?", "Describe this image in detail.",
)  # fmt: skip


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


def _counted(count: int, noun: str) -> str:
    """ "Two pandas", "One panda", "No pandas"."""
    return f"{NUMBERS[count].capitalize()} {noun if count == 1 else plural(noun)}"


def ask_describe(scene: Scene, rng: np.random.Generator) -> Turn:
    prompt = DESCRIBE if rng.random() < 0.7 else str(rng.choice(_DESCRIBE_ALIKE))
    return Turn("describe", prompt, describe(scene))


def _pick(scene: Scene, rng: np.random.Generator, present: float) -> str:
    """A noun that is in the scene with probability `present`."""
    there = [thing.noun for thing in scene.objects]
    if rng.random() < present:
        return there[rng.integers(len(there))]
    return str(rng.choice([noun for noun in NOUNS if noun not in there]))


def _places(scene: Scene, noun: str) -> list[str]:
    return [at_place(thing.place) for thing in scene.objects if thing.noun == noun]


def _join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def ask_exists(scene: Scene, rng: np.random.Generator) -> Turn:
    noun = _pick(scene, rng, 0.5)
    prompt = str(rng.choice((f"Is there {article(noun)}?", f"Is there {article(noun)} in the picture?")))
    answer = f"Yes, there is {article(noun)}." if _places(scene, noun) else f"No, there is no {noun}."
    return Turn("exists", prompt, answer)


def ask_count(scene: Scene, rng: np.random.Generator) -> Turn:
    if rng.random() < 0.2:
        return Turn("count", "How many objects are there?", f"{_counted(len(scene.objects), 'object')}.")
    noun = _pick(scene, rng, 0.8)
    answer = f"{_counted(len(_places(scene, noun)), noun)}."
    return Turn("count", f"How many {plural(noun)} are there?", answer)


def ask_where(scene: Scene, rng: np.random.Generator) -> Turn:
    noun = _pick(scene, rng, 0.9)
    places = _places(scene, noun)
    if not places:
        return Turn("where", f"Where is the {noun}?", f"There is no {noun}.")
    prompt = f"Where is the {noun}?" if len(places) == 1 else f"Where are the {plural(noun)}?"
    return Turn("where", prompt, f"{_join(places).capitalize()}.")


def ask_what(scene: Scene, rng: np.random.Generator) -> Turn:
    at = {thing.place: thing for thing in scene.objects}
    place = str(rng.choice(list(at) if rng.random() < 0.8 else PLACES))
    thing = at.get(place)
    answer = f"A {thing.size} {thing.noun}." if thing else "Nothing."
    return Turn("what", f"What is {at_place(place)}?", answer)


def ask_background(scene: Scene, rng: np.random.Generator) -> Turn:
    prompts = ("What is the background?", "What color is the background?", "What is in the background?")
    return Turn("background", str(rng.choice(prompts)), f"{scene.pattern.capitalize()} {scene.color}.")


def ask_size(scene: Scene, rng: np.random.Generator) -> Turn:
    thing = scene.objects[rng.integers(len(scene.objects))]
    if len(_places(scene, thing.noun)) > 1:
        return ask_what(scene, rng)
    return Turn("size", f"How big is the {thing.noun}?", f"{thing.size.capitalize()}.")


QUESTIONS: tuple[Callable[[Scene, np.random.Generator], Turn], ...] = (
    ask_exists, ask_count, ask_where, ask_what, ask_background, ask_size,
)  # fmt: skip


def turns(scene: Scene, rng: np.random.Generator, questions: int) -> list[Turn]:
    """A description and `questions` questions, each about something else where there is enough."""
    order = rng.permutation(len(QUESTIONS))
    asked = [QUESTIONS[order[i % len(order)]](scene, rng) for i in range(questions)]
    return [ask_describe(scene, rng), *asked]
