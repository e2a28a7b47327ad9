"""`twigserve evaluate`: accuracy and acceptance of a checkpoint, by way of pruning and by budget."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.groups import grouped
from service.cli.options import AsJson, EngineOptions, plain_errors

if TYPE_CHECKING:
    from model.evaluate import Asker, Item
    from model.evaluate.page import PageRun

Art = Annotated[Path, typer.Option(help="The rendered scene art that `make data` writes.")]


class Method(StrEnum):
    TTP, RANDOM, GRID, FASTV, FASTV_DEEP, SALIENCY = (
        "ttp", "random", "grid", "fastv", "fastv_deep", "saliency",
    )  # fmt: skip


class Split(StrEnum):
    TEST, VALIDATION, UNSEEN = "test", "validation", "unseen"


@grouped
def evaluate(
    sprites: Art = Path("data/sprites.npy"),
    scenes: Annotated[int, typer.Option(min=1, help="Scenes of the split; five items each.")] = 60,
    split: Annotated[
        Split, typer.Option(help="`unseen` is drawn in a style no training run saw.")
    ] = Split.TEST,
    data: Annotated[
        Path | None,
        typer.Option(help="Instead of scenes: a JSON list of image, question, answer.", dir_okay=False),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="The folder of --data's images; its own by default.")
    ] = None,
    method: Annotated[
        list[Method] | None,
        typer.Option(help="Ways of pruning; repeatable. All that the model can by default."),
    ] = None,
    retained_tokens: Annotated[
        list[int] | None, typer.Option(help="Budgets beside the unpruned model; repeatable.")
    ] = None,
    answers: Annotated[
        Path | None,
        typer.Option(
            help="Keeps the answers here, and asks only what is missing: a run that was cut off goes on."
        ),
    ] = None,
    model_card: Annotated[Path | None, typer.Option(help="Writes the embedded model's card here.")] = None,
    page: Annotated[
        Path | None,
        typer.Option(
            help="Writes the accuracy page and its plots here, and keeps --answers in runs/ by default."
        ),
    ] = None,
    ablations: Annotated[
        Path, typer.Option(help="For the page: what `python -m model.train.ablations` has written.")
    ] = Path("runs/ablations.json"),
    as_json: AsJson = False,
    *,
    engine: EngineOptions,
) -> None:
    """How well a checkpoint sees, unpruned and by each way of pruning at equal budgets."""
    with plain_errors():
        _check(page, model_card, data, images, split)
        from model.evaluate import Answers, Asker, Loader, own_items, print_table, scenes_bench

        loader = Loader(
            engine.vlm or "embedded",
            engine.twig,
            engine.device or "cpu",
            engine.dtype or "auto",
            engine.threads,
            engine.fork_layer,
            engine.drop_layer,
        )
        items = own_items(data, images) if data else scenes_bench(sprites, scenes, split.value)
        if page and answers is None:
            answers = Path("runs") / f"answers-{loader.fingerprint}.jsonl"
        known = Answers(answers, loader.fingerprint)
        methods = None if method is None else [each.value for each in method]
        asker = Asker(loader.engine(), known)
        if page:
            from model.evaluate.page import PageRun

            run = PageRun(loader, sprites, scenes, known, ablations)
            entries = _page(page, run, asker, methods, retained_tokens)
        else:
            entries = _run(asker, items, methods, retained_tokens)
        print_table(entries, aside=as_json)
        if model_card:
            from model.train.model_card import write_card

            write_card(model_card, len(items), [e for e in entries if e["method"] in ("none", "ttp")])
    if as_json:
        typer.echo(json.dumps({"checkpoint": loader.name, "items": len(items), "results": entries}))


def _check(
    page: Path | None, model_card: Path | None, data: Path | None, images: Path | None, split: Split
) -> None:
    for name, wanted in (("--page", page), ("--model-card", model_card)):
        if wanted is not None and (data is not None or split is not Split.TEST):
            raise ValueError(f"{name} tells of the test split: it goes with neither --data nor --split")
    if data is not None and split is not Split.TEST:
        raise ValueError("give --data or --split, not both")
    if images is not None and data is None:
        raise ValueError("--images is the folder of --data's images: give --data")


def _run(
    asker: Asker, items: Sequence[Item], methods: Sequence[str] | None, budgets: Sequence[int] | None
) -> list[dict[str, Any]]:
    from tqdm import tqdm

    from model.evaluate import evaluate_ways

    ways = asker.plan(methods, budgets, items[0])
    with tqdm(total=len(items) * len(ways), unit="item", disable=None) as bar:
        return evaluate_ways(asker, items, ways, bar.update)


def _page(page: Path, run: PageRun, asker: Asker, methods: Any, budgets: Any) -> list[dict[str, Any]]:
    from tqdm import tqdm

    from model.evaluate.page import write_page

    plan = run.plan(asker, methods, budgets)
    with tqdm(total=plan.asked, unit="item", disable=None) as bar:
        return write_page(page, run, asker, plan, bar.update)
