"""`twigserve train`: the embedded model, base and then twig, and a twig for any supported base."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.evaluating import Art
from service.cli.options import Device, Dtype, Threads, given, plain_errors

if TYPE_CHECKING:
    from model.train.processes import Processes
    from model.train.recipe import Paths, Tick

Runs = Annotated[Path, typer.Option(help="Checkpoints and caches; a run resumes from what is here.")]
Own = Annotated[str | None, typer.Option(help="cpu or cuda; a GPU by default where there is one.")]
Out = Annotated[Path | None, typer.Option(help="Where the weights go; the package's own folder by default.")]


class Draft(StrEnum):
    TEXT, BASE = "text", "base"


class Fit(StrEnum):
    PAD = "pad"


def train_base(
    sprites: Art = Path("data/sprites.npy"), runs: Runs = Path("runs"), out: Out = None, device: Own = None
) -> None:
    """Vision tower, then projector and decoder: hours on two cores."""
    from model.train.recipe import train_base as run

    _train(run, sprites, runs, out, device)


def train_twig(
    base: Annotated[
        Path | None,
        typer.Option(help="A base's directory; the embedded model's own recipe without it.", file_okay=False),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="For --base: conversations in the LLaVA-665K format.", dir_okay=False)
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="The folder of --data's images; its own by default.", file_okay=False)
    ] = None,
    sprites: Art = Path("data/sprites.npy"),
    runs: Runs = Path("runs"),
    out: Annotated[
        Path | None, typer.Option(help="Where the twig goes; the package's own folder without --base.")
    ] = None,
    fork_layer: Annotated[int | None, typer.Option(min=0, help="K; 2 by default.")] = None,
    twig_layers: Annotated[int | None, typer.Option(min=1, help="T; 3 by default.")] = None,
    drop_layer: Annotated[
        int | None, typer.Option(min=1, help="F; three quarters of the base's layers by default.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="1e-4 by default.")] = None,
    warmup: Annotated[float | None, typer.Option(help="Share of the steps; 0.03 by default.")] = None,
    passes: Annotated[float | None, typer.Option(help="Over the data; 1 by default.")] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Items a step, over all processes; 128 by default.")
    ] = None,
    micro_batch: Annotated[
        int | None, typer.Option(min=1, help="Items computed together in a process; 4 by default.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Tokens of an item; what is longer is cut. 2048 by default.")
    ] = None,
    draft: Annotated[
        Draft | None, typer.Option(help="Learn the text's next token, or the base's own under pruning.")
    ] = None,
    foresight_weight: Annotated[
        float | None, typer.Option(min=0, help="Of looking where the base will look; 0 for the paper's loss.")
    ] = None,
    pruning_weight: Annotated[
        float | None, typer.Option(min=0, help="Of what the base loses under pruning; 0, none, by default.")
    ] = None,
    image_fit: Annotated[
        Fit | None, typer.Option(help="Pad pictures to a square, for LLaVA-1.5 served with it.")
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads that prepare pictures.")] = None,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
) -> None:
    """The twig on a frozen base: the embedded one's, or with --base and --data that of any supported base."""
    recipe = given(
        fork_layer=fork_layer, twig_layers=twig_layers, drop_layer=drop_layer, learning_rate=learning_rate,
        warmup=warmup, passes=passes, batch=batch, max_length=max_length, draft=draft and draft.value,
        foresight_weight=foresight_weight, pruning_weight=pruning_weight,
        image_fit=image_fit and image_fit.value, seed=seed,
    )  # fmt: skip
    machine = given(micro_batch=micro_batch, workers=workers, dtype=dtype, threads=threads)
    with plain_errors():
        if base is None:
            _check_embedded(given(data=data, images=images) | recipe | machine)
        elif data is None or out is None:
            raise ValueError("--base needs --data, the conversations, and --out, where the twig goes")
        else:
            _train_own(base, data, images, runs, out, recipe, machine, device or "cpu")
            return
    from model.train.recipe import train_twig as run

    _train(run, sprites, runs, out, device)


def _check_embedded(said: dict[str, Any]) -> None:
    if said:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in said)
        raise ValueError(f"the embedded model's recipe is fixed: {names} goes with --base")


def _train_own(
    base: Path,
    data: Path,
    images: Path | None,
    runs: Path,
    out: Path,
    recipe: dict[str, Any],
    machine: dict[str, Any],
    device: str,
) -> None:
    from model.train.conversations import read_conversations
    from model.train.own_twig import Machine, OwnTwigRun, TwigRecipe
    from model.train.processes import joined

    chosen = TwigRecipe(**recipe)
    conversations = read_conversations(data, images)
    with joined(device) as processes:
        run = OwnTwigRun(base, conversations, runs, chosen, Machine(**machine), processes)
        run.train()
        processes.in_turn(lambda: run.write(out))
        if processes.lead:
            typer.echo(f"{out}: the twig, after {run.steps} steps on {len(conversations)} items")


def _train(
    run: Callable[[Paths, Tick, Processes], None],
    sprites: Path,
    runs: Path,
    out: Path | None,
    device: str | None,
) -> None:
    from tqdm import tqdm

    from model.device import best_device, device_of
    from model.train.processes import joined
    from model.train.recipe import POOL_SCENES, paths

    with plain_errors():
        chosen = best_device() if device is None else device_of(device)
        with (
            joined(str(chosen)) as processes,
            tqdm(
                total=POOL_SCENES, unit="scene", desc="features", disable=None if processes.lead else True
            ) as bar,
        ):
            run(paths(sprites, runs, out), bar.update, processes)
