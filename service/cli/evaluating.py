"""`twigserve evaluate`: accuracy and acceptance of a checkpoint, by way of pruning and by budget."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.options import Device, DropLayer, Dtype, ForkLayer, Threads, Twig, Vlm, plain_errors

if TYPE_CHECKING:
    from model.evaluate import Item, Loader

Art = Annotated[Path, typer.Option(help="The rendered scene art that `make data` writes.")]


class Method(StrEnum):
    TTP, RANDOM, GRID, FASTV, FASTV_DEEP, SALIENCY = (
        "ttp", "random", "grid", "fastv", "fastv_deep", "saliency",
    )  # fmt: skip


class Split(StrEnum):
    TEST, VALIDATION, UNSEEN = "test", "validation", "unseen"


def evaluate(
    sprites: Art = Path("data/sprites.npy"),
    scenes: Annotated[int, typer.Option(min=1, help="Scenes of the split; two items each.")] = 150,
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
        list[Method] | None, typer.Option(help="Ways of pruning; repeatable. All by default.")
    ] = None,
    retained_tokens: Annotated[
        list[int] | None, typer.Option(help="Budgets beside the unpruned model; repeatable.")
    ] = None,
    vlm: Vlm = None,
    twig: Twig = None,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    fork_layer: ForkLayer = None,
    drop_layer: DropLayer = None,
    model_card: Annotated[Path | None, typer.Option(help="Writes the embedded model's card here.")] = None,
    page: Annotated[Path | None, typer.Option(help="Writes the accuracy page with its plot here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object last.")] = False,
) -> None:
    """How well a checkpoint sees, unpruned and by each way of pruning at equal budgets."""
    with plain_errors():
        from model.evaluate import Loader, own_items, print_table, scenes_bench

        loader = Loader(
            vlm or "embedded", twig, device or "cpu", dtype or "auto", threads, fork_layer, drop_layer
        )
        items = own_items(data, images) if data else scenes_bench(sprites, scenes, split.value)
        methods = [each.value for each in method or Method]
        entries = _run(loader, items, methods, retained_tokens or [192, 128, 64, 40])
        print_table(entries)
        if model_card:
            from model.train.model_card import write_card

            write_card(model_card, len(items), [e for e in entries if e["method"] in ("none", "ttp")])
        if page:
            from model.evaluate.page import write_page

            write_page(page, loader, sprites, scenes, entries)
    if as_json:
        typer.echo(json.dumps({"checkpoint": loader.name, "items": len(items), "results": entries}))


def _run(
    loader: Loader, items: Sequence[Item], methods: Sequence[str], budgets: Sequence[int]
) -> list[dict[str, Any]]:
    from tqdm import tqdm

    from model.evaluate import evaluate_methods

    total = len(items) * (1 + len(methods) * len(budgets))
    with tqdm(total=total, unit="item", disable=None) as bar:
        return evaluate_methods(loader, items, methods, budgets, bar.update)
