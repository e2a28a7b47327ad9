"""What several commands share: options, and errors that a user can mend, told in one line (exit 2)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Any

import typer

from service.settings import LogSettings, RedisSettings

RedisUrl = Annotated[str | None, typer.Option(help="Redis to use. [env: TWIGSERVE_REDIS_URL]")]
Vlm = Annotated[
    str | None, typer.Option("--model", help="A checkpoint directory, or `embedded` (the default).")
]
Twig = Annotated[str | None, typer.Option(help="The twig's directory; the embedded model brings its own.")]
Dtype = Annotated[str | None, typer.Option(help="auto (the default), bfloat16, float16 or float32.")]
Device = Annotated[str | None, typer.Option(help="cpu (the default) or cuda.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of torch.")]
MaxBatch = Annotated[int | None, typer.Option(min=1, help="Requests decoded together.")]
KvCacheBytes = Annotated[
    int | None, typer.Option(min=1, help="The most the KV cache may hold; requests wait for room in it.")
]
ForkLayer = Annotated[int | None, typer.Option(help="K, for a twig without twig_config.json.")]
DropLayer = Annotated[int | None, typer.Option(help="F, for a twig without twig_config.json.")]


class Quality(StrEnum):
    FAST, BALANCED, BEST, EXACT = "fast", "balanced", "best", "exact"


class PriorityName(StrEnum):
    INTERACTIVE, BATCH = "interactive", "batch"


def redis(url: str | None) -> RedisSettings:
    return RedisSettings(**given(url=url))


def given(**values: Any) -> dict[str, Any]:
    """Only what was said on the command line: the rest is the environment's, then the default."""
    return {name: value for name, value in values.items() if value is not None}


def options(values: dict[str, Any]) -> list[str]:
    return [part for name, value in given(**values).items() for part in (f"--{name}", str(value))]


def configure_log() -> None:
    from service.log import configure

    configure(LogSettings().level)


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """What the user can mend (settings, files, checkpoints) is one line, not a traceback."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        typer.echo(f"twigserve: {error}", err=True)
        raise typer.Exit(2) from error
