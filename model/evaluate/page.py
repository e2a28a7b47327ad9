"""The accuracy page: what pruning keeps, by method and budget, and what speculation accepts.

Written whole by one run of `twigserve evaluate --page`, so that no figure on it is older than another.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model.evaluate.items import SEEDS, Item, Split, scenes_bench
from model.evaluate.run import NONE, Loader, evaluate, evaluate_methods
from model.evaluate.tables import markdown

Entry = dict[str, Any]
THRESHOLDS, DRAFTS, BUDGETS = (0.4, 0.6, 0.8), (3, 5, 7), (576, 128, 64)

_PAGE = """# Accuracy

What the embedded model keeps of its accuracy when visual tokens go. Written by

```console
twigserve evaluate --scenes {scenes} --page {path}
```

on *ScenesBench* (`model/evaluate/items.py`): a description and a question each scene, {items} items a row.
Seeds {test} are the test split, {validation} validation; training draws from a million on.
A task's score is the share of right answers, a description's the mean of its parts: objects named of those
there (recall) and of those said (precision), in the right place, in the right size. RelAcc is the mean over
tasks of pruned divided by unpruned. R̄ is the average number of visual tokens over all layers, of
{image_tokens}.

![RelAcc by budget](accuracy.png)

## Methods at equal budgets

`ttp` is the twig's attention. The others rank by lot, by an even grid, by the attention of base layer K
(`fastv`) and of layer K+T (`fastv_deep`), and by the vision tower's [CLS] attention (`saliency`). They share
everything else: the layers that prune, the budget arithmetic, the drafts.

{methods}

## A style that training never saw

The test seeds drawn with emojione, as far as it has the nouns.

{unseen}

## What speculation accepts

{drafting_items} descriptions; θ is the probability under which drafting stops, γ the most drafts a round. The
text is the pruned model's own at every setting.

{drafting}
"""


def write_page(path: Path, loader: Loader, sprites: Path, scenes: int, entries: Sequence[Entry]) -> None:
    """entries: `evaluate_methods` over the test split. Also draws accuracy.png beside the page."""
    unseen = evaluate_methods(loader, scenes_bench(sprites, scenes, "unseen"), ["ttp"], [128, 64])
    described = [item for item in scenes_bench(sprites, min(scenes, 60)) if item.turn.task == "describe"]
    image_tokens = entries[0]["retained_tokens"]
    path.write_text(
        _PAGE.format(
            scenes=scenes, path=path, items=2 * scenes, image_tokens=image_tokens,
            test=_seeds("test"), validation=_seeds("validation"), methods=markdown(entries),
            unseen=markdown(unseen), drafting_items=len(described), drafting=_drafting(loader, described),
        )
    )  # fmt: skip
    _plot(path.with_name("accuracy.png"), entries)


def _seeds(split: Split) -> str:
    return f"{SEEDS[split][0]:,} to {SEEDS[split][-1]:,}"


def _drafting(loader: Loader, items: Sequence[Item]) -> str:
    lines = ["| θ | γ | R̄ | acceptance | tokens/round |", "|---|---|---|---|---|"]
    for threshold in THRESHOLDS:
        for drafts in DRAFTS:
            engine = loader.engine(draft_threshold=threshold, draft_tokens=drafts, governor=False)
            for budget in BUDGETS:
                entry = evaluate(engine, items, NONE, budget, lambda _: None)
                lines.append(
                    f"| {threshold} | {drafts} | {budget} | {entry['acceptance']:.3f} "
                    f"| {entry['tokens_per_round']:.2f} |"
                )
    return "\n".join(lines)


def _plot(path: Path, entries: Sequence[Entry]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for method in dict.fromkeys(entry["method"] for entry in entries if entry["method"] != NONE):
        points = sorted((e["retained_tokens"], e["rel_acc"]) for e in entries if e["method"] == method)
        axes.plot(
            *zip(*points, strict=True), marker="o", label=method, linewidth=2.5 if method == "ttp" else 1
        )
    axes.set(xlabel="visual tokens kept on average (R̄)", ylabel="RelAcc", ylim=(None, 1.02))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)
