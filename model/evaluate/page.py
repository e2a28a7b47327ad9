"""The accuracy page: what pruning keeps, by method and budget, what speculation accepts, and the ablations.

Written whole by `twigserve evaluate --page` from one file of answers, so that no figure on it is of other
weights than another. The run may be cut off and started again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.evaluate.answers import Answers
from model.evaluate.items import ITEMS_A_SCENE, SEEDS, Item, Split, scenes_bench
from model.evaluate.plots import plot_budgets, plot_drafts
from model.evaluate.run import Asker, Loader, Tick, evaluate_ways
from model.evaluate.tables import markdown, table
from model.evaluate.ways import NONE, Way, all_ways

Entry = dict[str, Any]
THRESHOLDS, DRAFTS = (0.4, 0.6, 0.8), (3, 5, 7)
# Scenes of the two smaller parts; so many of the unseen style tell a hundredth.
UNSEEN_SCENES, DRAFTING_SCENES = 400, 40
UNSEEN_METHODS = ("ttp", "grid")
UNSEEN_BUDGETS, DRAFTING_BUDGETS = (192, 128, 64), (576, 192, 64)

_PAGE = """# Accuracy

What `{checkpoint}`, the model of this repository unless it says otherwise, keeps of its accuracy when visual
tokens go. Written by

```console
twigserve evaluate --scenes {scenes} --page {path}
```

on *ScenesBench* (`model/evaluate/items.py`): a description of each scene and {questions} questions about it,
whose kinds take turns; {items:,} items a row. Of the seeds, {test} are the test split and {validation}
validation; training draws from {train:,} on. The tables below use seeds {first} to {last}.
A task's score is the share of right answers, a description's the mean of its parts: objects named of those
there (recall) and of those said (precision), in the right place, in the right size. RelAcc is the mean over
tasks of pruned divided by unpruned. R̄ is the average number of visual tokens over all layers, of
{image_tokens}.

![RelAcc by budget](accuracy.png)

## Methods at equal budgets

`ttp` is the twig's attention. The others rank by lot, by an even grid, by the attention of base layer K
(`fastv`) and of layer K+T (`fastv_deep`), and by the vision tower's [CLS] attention (`saliency`). They share
everything else: the layers that prune, the budget arithmetic, the drafts. How far `ttp` is ahead of a row is
the 95 % interval of a bootstrap over pictures, paired: two ways whose interval holds 0 cannot be told apart.
Acceptance is of drafted tokens at θ={threshold:g}, γ={drafts}.

{methods}

## A style that training never saw

The first {unseen_items:,} items of the same seeds, drawn with emojione as far as it has the nouns; RelAcc is
to this style's own unpruned row.

{unseen}

## What speculation accepts

The descriptions of the first {drafting_items} scenes; θ is the probability under which drafting stops, γ the
most drafts a round, accepted length the tokens a round gives, the base's own included. The text is the pruned
model's own at every setting.

![Acceptance and accepted length](acceptance.png)

{drafting}

## Ablations

{ablations}
"""
NO_ABLATIONS = (
    "`python -m model.train.ablations` trains and measures them; a page written after that has the table."
)


@dataclass(frozen=True)
class PageRun:
    """methods, budgets: None for all. ablations: what `model.train.ablations` has written."""

    loader: Loader
    sprites: Path
    scenes: int
    answers: Answers
    ablations: Path

    def plan(self, asker: Asker, methods: Sequence[str] | None, budgets: Sequence[int] | None) -> Plan:
        items = scenes_bench(self.sprites, self.scenes)
        ways = asker.plan(methods, budgets, items[0])
        drafts, threshold = asker.engine.drafting
        unseen = scenes_bench(self.sprites, min(self.scenes, UNSEEN_SCENES), "unseen")
        described = [
            item
            for item in scenes_bench(self.sprites, min(self.scenes, DRAFTING_SCENES))
            if item.turn.task == "describe"
        ]
        card = asker.engine.card
        unseen_ways = all_ways(card, UNSEEN_METHODS, UNSEEN_BUDGETS, drafts, threshold)
        return Plan(items, ways, unseen, unseen_ways, described, drafting_ways(card.image_tokens))


@dataclass(frozen=True)
class Plan:
    """Items and the ways they are asked in: the methods, the unseen style, drafts."""

    items: list[Item]
    ways: list[Way]
    unseen: list[Item]
    unseen_ways: list[Way]
    described: list[Item]
    drafting_ways: list[Way]

    @property
    def asked(self) -> int:
        pairs = (
            (self.items, self.ways), (self.unseen, self.unseen_ways), (self.described, self.drafting_ways),
        )  # fmt: skip
        return sum(len(items) * len(ways) for items, ways in pairs)


def drafting_ways(image_tokens: int) -> list[Way]:
    return [
        Way(NONE if budget == image_tokens else "ttp", budget, drafts, threshold)
        for threshold in THRESHOLDS
        for drafts in DRAFTS
        for budget in DRAFTING_BUDGETS
    ]


def write_page(path: Path, run: PageRun, asker: Asker, plan: Plan, tick: Tick) -> list[Entry]:
    """Also draws the plots beside the page. Returns the entries of the methods."""
    entries = evaluate_ways(asker, plan.items, plan.ways, tick)
    unseen = evaluate_ways(asker, plan.unseen, plan.unseen_ways, tick)
    # As many drafts as any row of the table has must be loaded for.
    drafter = Asker(run.loader.engine(draft_tokens=max(DRAFTS)), run.answers)
    drafter.ask(plan.drafting_ways, plan.described, tick)
    drafting = [drafter.entry(way, plan.described) for way in plan.drafting_ways]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_text(path, run, plan, entries, markdown(unseen), drafting))
    plot_budgets(path.with_name("accuracy.png"), entries)
    plot_drafts(path.with_name("acceptance.png"), drafting)
    return entries


def _text(
    path: Path, run: PageRun, plan: Plan, entries: list[Entry], unseen: str, drafting: list[Entry]
) -> str:
    seeds = SEEDS["test"]
    return _PAGE.format(
        checkpoint=run.loader.name,
        scenes=run.scenes,
        path=path,
        questions=ITEMS_A_SCENE - 1,
        items=len(plan.items),
        test=_seeds("test"),
        validation=_seeds("validation"),
        train=_train_seeds(),
        first=seeds[0],
        last=seeds[run.scenes - 1],
        image_tokens=entries[0]["retained_tokens"],
        threshold=entries[0]["draft_threshold"],
        drafts=entries[0]["draft_tokens"],
        methods=markdown(entries),
        unseen_items=len(plan.unseen),
        unseen=unseen,
        drafting_items=len(plan.described),
        drafting=_drafting(drafting),
        ablations=_ablations(run.ablations),
    )


def _seeds(split: Split) -> str:
    return f"{SEEDS[split][0]:,} to {SEEDS[split][-1]:,}"


def _train_seeds() -> int:
    from model.scenes.compose import TRAIN_SEEDS

    return TRAIN_SEEDS


def _drafting(entries: Sequence[Entry]) -> str:
    columns: list[tuple[str, Callable[[Entry], str]]] = [
        ("θ", lambda e: f"{e['draft_threshold']:g}"),
        ("γ", lambda e: str(e["draft_tokens"])),
        ("R̄", lambda e: str(e["retained_tokens"])),
        ("acceptance", lambda e: f"{e['acceptance']:.3f}"),
        ("accepted length", lambda e: f"{e['tokens_per_round']:.2f}"),
    ]
    return table([name for name, _ in columns], [[show(e) for _, show in columns] for e in entries])


def _ablations(path: Path) -> str:
    if not path.exists():
        return NO_ABLATIONS
    found = json.loads(path.read_text())
    return f"{found['about']}\n\n{table(found['columns'], found['rows'])}"
