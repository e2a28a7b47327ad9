"""Copies the sample pictures into the playground and writes their index, from the pictures' own truth files.

`python -m tests.service.bundle_scenes`, when `docs/samples` has changed; a test tells.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from model.scenes.words import article, at_place, plural
from service.routes.playground import STATIC

SAMPLES = Path(__file__).resolve().parents[2] / "docs/samples"
BUNDLE = STATIC / "samples"


def main() -> None:
    BUNDLE.mkdir(exist_ok=True)
    for old in BUNDLE.glob("*.png"):
        old.unlink()
    for picture in sorted(SAMPLES.glob("*.png")):
        shutil.copy(picture, BUNDLE / picture.name)
    index = json.dumps(scenes(), indent=1) + "\n"
    (BUNDLE / "index.json").write_text(index, encoding="utf-8")


def scenes() -> list[dict[str, Any]]:
    return [_scene(path.stem, json.loads(path.read_text())) for path in sorted(SAMPLES.glob("*.json"))]


def _scene(name: str, truth: dict[str, Any]) -> dict[str, Any]:
    things = [f"a {one['size']} {one['noun']} {at_place(one['place'])}" for one in truth["objects"]]
    ground = truth["background"]
    return {
        "file": f"{name}.png",
        "title": name.capitalize(),
        "alt": f"On {article(ground)} background: {', '.join(things)}.",
        "questions": ["Describe the image.", *_questions(truth["objects"]), "What is the background?"],
    }


def _questions(objects: list[dict[str, str]]) -> list[str]:
    counts = Counter(one["noun"] for one in objects)
    several = [noun for noun, count in counts.items() if count > 1]
    single = [noun for noun, count in counts.items() if count == 1]
    many = f"How many {plural(several[0])} are there?" if several else "How many objects are there?"
    return [many, *(f"Where is the {noun}?" for noun in single[-1:])]


if __name__ == "__main__":
    main()
