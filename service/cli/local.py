"""The commands that run a model here, without any service: bench, verify."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from service.cli.options import (
    AsJson,
    Device,
    DropLayer,
    ForkLayer,
    Threads,
    Twig,
    given,
    plain_errors,
)


def bench(
    vlm: Annotated[
        str, typer.Option("--model", help="`embedded`, `mid` (random, 400 M parameters) or a directory.")
    ] = "embedded",
    twig: Twig = None,
    cache: Annotated[str | None, typer.Option(help="Keeps `mid` in this directory for the next run.")] = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Repeatable; 1 and 8 by default.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="Repeatable; all by default.")] = None,
    pictures: Annotated[int, typer.Option(min=1, help="How many, one by one, at batch 1.")] = 4,
    max_tokens: int = 128,
    threads: int = 2,
    dtype: Annotated[str, typer.Option(help="Of our side.")] = "auto",
    generate_dtype: Annotated[
        str, typer.Option(help="Of the other side; `fastest` is measured.")
    ] = "fastest",
    repeats: int = 3,
    retained_tokens: Annotated[int | None, typer.Option(help="R-bar of ttp; tier `fast` by default.")] = None,
    fork_layer: ForkLayer = None,
    drop_layer: DropLayer = None,
    memory: Annotated[
        bool,
        typer.Option(
            help="The KV cache of one request instead; from config files alone. Also `llava-1.5-7b`."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Our engine against transformers' generate, on the same weights in the same run."""
    about: dict[str, Any] = {"model": vlm, "twig": twig, "max_tokens": max_tokens}
    about |= {"fork_layer": fork_layer, "drop_layer": drop_layer}
    if memory:
        budgets = (64 if retained_tokens is None else retained_tokens,)
        _bench_memory(
            as_json, dtype="bfloat16" if dtype == "auto" else dtype, retained_tokens=budgets, **about
        )
        return
    with plain_errors():
        from model.bench import METHODS, BenchConfig, print_table, run_bench

        config = BenchConfig(
            cache=cache,
            batch=tuple(batch or (1, 8)),
            methods=tuple(method or METHODS),
            pictures=pictures,
            threads=threads,
            dtype=dtype,
            generate_dtype=generate_dtype,
            repeats=repeats,
            retained_tokens=retained_tokens,
            **about,
        )
        with _progress_bar() as progress:
            report = run_bench(config, progress)
    print_table(report, aside=as_json)
    if as_json:
        typer.echo(json.dumps(report))


def _bench_memory(as_json: bool, **config: Any) -> None:
    with plain_errors():
        from model.bench.memory import MemoryConfig, print_memory, run_memory

        report = run_memory(MemoryConfig(**config))
    print_memory(report, aside=as_json)
    if as_json:
        typer.echo(json.dumps(report))


def verify(
    base: Annotated[str, typer.Argument(help="`embedded` or a checkpoint directory.")] = "embedded",
    twig: Twig = None,
    device: Device = None,
    dtype: Annotated[
        list[str] | None, typer.Option(help="Repeatable; float32 and bfloat16 by default.")
    ] = None,
    threads: Threads = None,
    fork_layer: ForkLayer = None,
    drop_layer: DropLayer = None,
    max_tokens: Annotated[int, typer.Option(min=4, help="Of each answer.")] = 32,
    as_json: AsJson = False,
) -> None:
    """Does a checkpoint answer alike with and without speculation, alone and in a batch? Exit 0 or 1."""
    with plain_errors():
        from tqdm import tqdm

        from model.verify import VerifyConfig
        from model.verify import verify as run
        from service.bundled import sample_pictures

        said = given(device=device, dtypes=tuple(dtype) if dtype else None)
        config = VerifyConfig(
            sample_pictures(),
            base,
            twig,
            threads=threads,
            max_tokens=max_tokens,
            fork_layer=fork_layer,
            drop_layer=drop_layer,
            **said,
        )
        with tqdm(total=config.answers, unit="answer", disable=None, leave=False) as bar:
            verdict = run(config, bar.update)
    for check in verdict["checks"]:
        typer.echo(f"{'ok  ' if check['ok'] else 'FAIL'} {check['name']} – {check['detail']}", err=as_json)
    if as_json:
        typer.echo(json.dumps(verdict))
    raise typer.Exit(0 if verdict["ok"] else 1)


@contextmanager
def _progress_bar() -> Iterator[Callable[[str, float], None]]:
    """A bar on a terminal, lines elsewhere."""
    from tqdm import tqdm

    with tqdm(total=100, unit="%", disable=None, bar_format="{desc} {bar} {n_fmt}% {elapsed}") as bar:

        def show(line: str, share: float) -> None:
            bar.set_description_str(line, refresh=False)
            bar.update(int(100 * share) - bar.n)
            if bar.disable:
                typer.echo(f"{share:4.0%} {line}", err=True)

        yield show
