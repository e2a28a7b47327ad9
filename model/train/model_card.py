"""Writes the embedded model's card (model/weights/README.md) from the figures of an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from model.evaluate.items import ITEMS_A_SCENE
from model.scenes.compose import TEST_SEEDS, TRAIN_SEEDS
from model.scenes.words import NOUNS, STYLES
from model.train.recipe import DROP_LAYER, FORK_LAYER, POOL_SCENES, RETAINED_TOKENS, TWIG_LAYERS
from model.train.tower import STAGES as TOWER_STAGES

_CARD = """# The embedded model

A small vision-language model in the LLaVA format (`transformers.LlavaForConditionalGeneration` and
`AutoProcessor` load it as it is), and its twig in TwigVLM's published format. It is there to run, test and
measure the service on any machine. It sees *scenes*: {nouns} kinds of objects in emoji art, in two sizes and
nine places, on coloured and patterned grounds.

**What it cannot do:** photographs, drawings in other styles, text in pictures, anything said in other words
than its own, any language but English. It answers those too, wrongly. What the table gives a low mark it
does badly: look there before you rely on questions or on pruning. "Describe the image." it answers best: a
list of the objects often says one twice where it should count two, or leaves one out, and how they are
arranged is told with relations left out or repeated. Use it for nothing but this project.

## Figures

{items} items on scenes of seeds {first_seed}.. (training uses {train_seed} and above), a description and
{questions} questions a scene, by `twigserve evaluate`:

{table}

A description's score is the mean of its parts: objects named of those there (recall) and of those said
(precision), told in the right place, in the right size. Questions count only if the whole answer is right.
RelAcc is the mean over tasks of pruned divided by unpruned; acceptance is of drafted tokens.

## Data and training

Scenes are composed from {styles} by `model/scenes`; sources and
licences are in `docs/attribution.md`. The weights are Apache-2.0 as the code; the art they learned from
is not in them.

```console
make data              # fetches the art from npm and renders it
twigserve train base   # vision tower on {windows:,} windows, then projector and decoder on {pool:,} scenes
twigserve train twig   # K={fork}, T={twig}, F={drop}; R-bar {retained} unless a request asks for less
```
"""


def _table(results: list[dict[str, Any]]) -> str:
    head = ["task", *(f"{r['method']} R̄={r['retained_tokens']}" for r in results)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]

    def line(name: str, scores: list[float], digits: int = 3) -> None:
        lines.append(f"| {name} | " + " | ".join(f"{score:.{digits}f}" for score in scores) + " |")

    for task in results[0]["tasks"]:
        line(task, [r["tasks"][task] for r in results])
    for part in results[0]["description"]:
        line(f"describe: {part}", [r["description"][part] for r in results])
    line("**RelAcc**", [r["rel_acc"] for r in results], digits=4)
    line("**acceptance**", [r["acceptance"] for r in results])
    return "\n".join(lines)


def write_card(path: Path, items: int, results: list[dict[str, Any]]) -> None:
    figures = {
        "nouns": len(NOUNS),
        "items": items,
        "questions": ITEMS_A_SCENE - 1,
        "first_seed": TEST_SEEDS[0],
        "train_seed": TRAIN_SEEDS,
        "table": _table(results),
        "styles": ", ".join(STYLES),
        "windows": sum(stage.samples for stage in TOWER_STAGES),
        "pool": POOL_SCENES,
        "fork": FORK_LAYER,
        "twig": TWIG_LAYERS,
        "drop": DROP_LAYER,
        "retained": RETAINED_TOKENS,
    }
    path.write_text(_CARD.format(**figures))
