"""What several commands share: options, and errors that a user can mend, told in one line (exit 2)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Annotated, Any

import typer

from service.settings import LogSettings, RedisSettings, told

MODEL = "The model"
BATCH = "The batch"

RedisUrl = Annotated[
    str | None, typer.Option(metavar="URL", help="Redis to use; else what TWIGSERVE_REDIS_URL names.")
]
Vlm = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="DIR",
        help="A checkpoint directory, or `embedded` (the default).",
        rich_help_panel=MODEL,
    ),
]
Twig = Annotated[
    str | None,
    typer.Option(
        metavar="DIR",
        help="The twig's directory; the embedded model brings its own.",
        rich_help_panel=MODEL,
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        metavar="TYPE",
        help="auto (the default), bfloat16, float16 or float32.",
        rich_help_panel=MODEL,
    ),
]
Device = Annotated[
    str | None, typer.Option(metavar="NAME", help="cpu (the default) or cuda.", rich_help_panel=MODEL)
]
AsJson = Annotated[
    bool, typer.Option("--json", help="One JSON object; what is for reading goes to standard error.")
]
Threads = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Threads of torch.", rich_help_panel=MODEL)
]
ForkLayer = Annotated[
    int | None,
    typer.Option(metavar="K", help="For a twig without twig_config.json.", rich_help_panel=MODEL),
]
DropLayer = Annotated[
    int | None,
    typer.Option(metavar="F", help="For a twig without twig_config.json.", rich_help_panel=MODEL),
]
MaxBatch = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Requests decoded together.", rich_help_panel=BATCH)
]
KvCacheBytes = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="BYTES",
        help="The most the KV cache may hold; requests wait for room in it.",
        rich_help_panel=BATCH,
    ),
]


@dataclass(frozen=True)
class EngineOptions:
    """Which model, and how it computes. None: as the settings say."""

    vlm: Vlm = None
    twig: Twig = None
    device: Device = None
    dtype: Dtype = None
    threads: Threads = None
    fork_layer: ForkLayer = None
    drop_layer: DropLayer = None

    def said(self) -> dict[str, Any]:
        return given(**asdict(self))


@dataclass(frozen=True)
class BatchOptions:
    max_batch: MaxBatch = None
    kv_cache_bytes: KvCacheBytes = None

    def said(self) -> dict[str, Any]:
        return given(**asdict(self))


class Quality(StrEnum):
    FAST, BALANCED, BEST, EXACT = "fast", "balanced", "best", "exact"


class PriorityName(StrEnum):
    INTERACTIVE, BATCH = "interactive", "batch"


def redis(url: str | None) -> RedisSettings:
    return RedisSettings(**given(url=url))


def given(**values: Any) -> dict[str, Any]:
    """Only what was said on the command line: the rest is the environment's, then the default."""
    return {name: value for name, value in values.items() if value is not None}


def command_line(said: dict[str, Any]) -> list[str]:
    """The same options for a process of ours."""
    named = {"model" if name == "vlm" else name.replace("_", "-"): value for name, value in said.items()}
    return [part for name, value in named.items() for part in (f"--{name}", str(value))]


def configure_log() -> None:
    from service.log import configure
    from service.standard_files import hold

    hold()
    configure(LogSettings().level)


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """What the user can mend (settings, files, checkpoints) is one line, not a traceback."""
    try:
        yield
    except BrokenPipeError:
        raise  # whoever read our output has had enough, which is no fault
    except (ValueError, OSError, ImportError) as error:
        typer.echo(f"twigserve: {told(error)}", err=True)
        raise typer.Exit(2) from error
