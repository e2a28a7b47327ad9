"""Writes the sample pictures of docs/samples: held-out scenes, each with a JSON of what is in it.

Run: python -m model.scenes.samples data/sprites.npy docs/samples
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from model.scenes.art import load_sprites
from model.scenes.compose import IMAGE_PX, TEST_SEEDS, draw, random_scene

SAMPLES = {"bees": 9000, "panda": 9004, "castle": 9007, "pizza": 9019, "bus": 9021, "dog": 9023}
SCALE = 2  # for people; the model reads them at IMAGE_PX


def write_samples(sprites_path: Path, out: Path) -> None:
    sprites = load_sprites(sprites_path)
    out.mkdir(parents=True, exist_ok=True)
    for name, seed in SAMPLES.items():
        if seed not in TEST_SEEDS:
            raise ValueError(f"sample {name} has seed {seed}, which is not held out")
        rng = np.random.default_rng(seed)
        scene = random_scene(rng)
        pixels, _ = draw(scene, sprites, rng)
        side = IMAGE_PX * SCALE
        Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS).save(
            out / f"{name}.png", optimize=True
        )
        objects = [{"noun": o.noun, "size": o.size, "place": o.place} for o in scene.objects]
        truth = {"seed": seed, "background": f"{scene.pattern} {scene.color}", "objects": objects}
        (out / f"{name}.json").write_text(json.dumps(truth, indent=1) + "\n")


if __name__ == "__main__":
    write_samples(Path(sys.argv[1]), Path(sys.argv[2]))
