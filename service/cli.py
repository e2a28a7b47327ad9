"""`twigserve`: the commands. Resolves settings once and hands them down.

Invariant: importing this module imports neither torch nor FastAPI; each command imports what it needs.
Must not know: how anything is done. Errors of settings and checkpoints end a command with one line, exit 2.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.settings import (
    GatewaySettings,
    LogSettings,
    RedisSettings,
    WorkerSettings,
    explicit_redis_url,
)

if TYPE_CHECKING:
    from model.request import Result

app = typer.Typer(
    name="twigserve",
    help="Descriptions of pictures by TwigVLM, served over HTTP.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
check_app = typer.Typer(no_args_is_help=True, help="Probes for orchestrators: exit 0 if well, 1 if not.")
app.add_typer(check_app, name="check")

RedisUrl = Annotated[str | None, typer.Option(help="Redis to use. [env: TWIGSERVE_REDIS_URL]")]
Vlm = Annotated[
    str | None, typer.Option("--model", help="A checkpoint directory, or `embedded` (the default).")
]
Twig = Annotated[str | None, typer.Option(help="The twig's directory; the embedded model brings its own.")]
Dtype = Annotated[str | None, typer.Option(help="bfloat16 (the default) or float32.")]
Device = Annotated[str | None, typer.Option(help="cpu (the default) or cuda.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of torch.")]
MaxBatch = Annotated[int | None, typer.Option(min=1, help="Requests decoded together.")]
ForkLayer = Annotated[int | None, typer.Option(help="K, for a twig without twig_config.json.")]
DropLayer = Annotated[int | None, typer.Option(help="F, for a twig without twig_config.json.")]


class Quality(StrEnum):
    FAST, BALANCED, BEST, EXACT = "fast", "balanced", "best", "exact"


@app.command()
def serve(
    host: str = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8000,
    workers: Annotated[int, typer.Option(min=1)] = 1,
    redis_url: RedisUrl = None,
    vlm: Vlm = None,
    twig: Twig = None,
    dtype: Dtype = None,
    threads: Threads = None,
    max_batch: MaxBatch = None,
) -> None:
    """The whole service on this machine: Redis (if none is given), workers, gateway."""
    from service.launcher import Launcher, ServePlan

    with _plain_errors():
        _configure_log()
        drain_s = max(WorkerSettings().drain_s, GatewaySettings().shutdown_s)
        redis_args: tuple[str, ...] | None = ("--redis-url", redis_url) if redis_url else None
        if redis_args is None and explicit_redis_url():
            redis_args = ()
        chosen = {"model": vlm, "twig": twig, "dtype": dtype, "threads": threads, "max-batch": max_batch}
        ourselves = (sys.executable, "-m", "service.cli")
        plan = ServePlan(
            gateway_command=(*ourselves, "gateway"),
            worker_command=(*ourselves, "worker", *_options(chosen)),
            host=host,
            port=port,
            workers=workers,
            redis_args=redis_args,
            drain_s=drain_s,
        )
        launcher = Launcher(plan)
    raise typer.Exit(launcher.run())


@app.command()
def gateway(
    host: str | None = None,
    port: int | None = None,
    redis_url: RedisUrl = None,
    worker_metrics_url: Annotated[
        list[str] | None, typer.Option(help="Appended to /metrics; repeatable.")
    ] = None,
) -> None:
    """The HTTP gateway alone."""
    with _plain_errors():
        urls = tuple(worker_metrics_url) if worker_metrics_url else None
        given = _given(host=host, port=port, worker_metrics_urls=urls)
        settings = GatewaySettings(redis=_redis(redis_url), **given)
        _configure_log()
    import uvicorn

    from service.app import create_app

    config = uvicorn.Config(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_config=None,
        timeout_graceful_shutdown=int(settings.shutdown_s),
    )
    uvicorn.Server(config).run()


@app.command()
def worker(
    redis_url: RedisUrl = None,
    vlm: Vlm = None,
    twig: Twig = None,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    max_batch: MaxBatch = None,
    fork_layer: ForkLayer = None,
    drop_layer: DropLayer = None,
    metrics_port: Annotated[int | None, typer.Option(help="Port of this worker's own /metrics.")] = None,
) -> None:
    """One worker: an engine that takes jobs from the queue."""
    with _plain_errors():
        given = _given(
            vlm=vlm,
            twig=twig,
            device=device,
            dtype=dtype,
            threads=threads,
            max_batch=max_batch,
            fork_layer=fork_layer,
            drop_layer=drop_layer,
            metrics_port=metrics_port,
        )
        settings = WorkerSettings(redis=_redis(redis_url), **given)
        _configure_log()
        from service.worker import run_worker

        run_worker(settings)


@app.command()
def describe(
    image: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    prompt: str = "Describe the image.",
    max_tokens: int = 128,
    retained_tokens: Annotated[
        int | None, typer.Option(help="Visual tokens kept on average over all layers.")
    ] = None,
    quality: Quality | None = None,
    speculation: bool = True,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object last.")] = False,
    vlm: Vlm = None,
    twig: Twig = None,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    fork_layer: ForkLayer = None,
    drop_layer: DropLayer = None,
) -> None:
    """Describes one picture here, without any service."""
    with _plain_errors():
        if quality is not None and retained_tokens is not None:
            raise ValueError("give --quality or --retained-tokens, not both")
        given = _given(
            vlm=vlm,
            twig=twig,
            device=device,
            dtype=dtype,
            threads=threads,
            fork_layer=fork_layer,
            drop_layer=drop_layer,
        )
        from model.request import Request, SamplingParams
        from service.worker import load_engine

        engine = load_engine(WorkerSettings(**given))
        if quality is not None:
            retained_tokens = engine.card.quality[quality.value]
        request = Request(
            prompt=prompt,
            images=[_open_image(image)],
            sampling=SamplingParams(max_tokens=max_tokens),
            retained_tokens=retained_tokens,
            speculation=speculation and engine.card.speculation,
        )
        report = _report(engine.generate([request])[0])
    typer.echo(report["text"])
    typer.echo(
        f"acceptance {report['acceptance']:.1%} of {report['draft_tokens']} drafted tokens, "
        f"pruned {report['pruned_share']:.1%} of {report['image_tokens']} visual tokens"
    )
    if as_json:
        typer.echo(json.dumps(report))


@app.command()
def bench(
    vlm: Annotated[str, typer.Option("--model", help="`embedded` or a checkpoint directory.")] = "embedded",
    twig: Twig = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Repeatable; 1 and 8 by default.")] = None,
    max_tokens: int = 128,
    threads: int = 2,
    dtype: str = "bfloat16",
    repeats: int = 3,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object last.")] = False,
) -> None:
    """Our engine against transformers' generate, on the same weights in the same run."""
    with _plain_errors():
        from model.bench import BenchConfig, print_table, run_bench

        config = BenchConfig(
            model=vlm,
            twig=twig,
            batch=tuple(batch or (1, 8)),
            max_tokens=max_tokens,
            threads=threads,
            dtype=dtype,
            repeats=repeats,
        )
        report = run_bench(config, lambda line: typer.echo(line, err=True))
    print_table(report)
    if as_json:
        typer.echo(json.dumps(report))


# `train base|twig` and `evaluate` are registered here, as `serve` above, once model/train and
# model/evaluate offer them.


@check_app.command("gateway")
def check_gateway(
    url: str = "http://127.0.0.1:8000",
    ready: Annotated[
        bool, typer.Option(help="Ask whether it would answer, not only whether it runs.")
    ] = False,
) -> None:
    """Is the gateway alive (or ready)?"""
    from service.probe import gateway_problem

    _verdict(gateway_problem(url, ready=ready))


@check_app.command("worker")
def check_worker(
    url: str = "http://127.0.0.1:9100/metrics",
    max_age_s: Annotated[float | None, typer.Option(help="How long one round may take.")] = None,
) -> None:
    """Does the worker's main loop turn?"""
    from service.probe import worker_problem

    with _plain_errors():
        limit_s = WorkerSettings().stall_s if max_age_s is None else max_age_s
    _verdict(worker_problem(url, limit_s))


def _open_image(path: Path) -> Any:
    """Upright RGB, as the gateway hands pictures to its workers."""
    from PIL import Image, ImageOps

    with Image.open(path) as picture:
        return ImageOps.exif_transpose(picture).convert("RGB")


def _report(result: Result) -> dict[str, Any]:
    drafted, image_tokens = result.draft_tokens, result.image_tokens
    kept = min(result.retained_tokens, image_tokens)
    return {
        "text": result.text,
        "finish_reason": result.finish_reason,
        "tokens": len(result.token_ids),
        "draft_tokens": drafted,
        "accepted_tokens": result.accepted_tokens,
        "acceptance": result.accepted_tokens / drafted if drafted else 0.0,
        "image_tokens": image_tokens,
        "retained_tokens": kept,
        "pruned_share": 1 - kept / image_tokens if image_tokens else 0.0,
        "ttft_s": result.ttft_s,
        "decode_s": result.decode_s,
    }


def _verdict(problem: str | None) -> None:
    typer.echo(problem or "ok")
    raise typer.Exit(1 if problem else 0)


def _redis(url: str | None) -> RedisSettings:
    return RedisSettings(**_given(url=url))


def _given(**values: Any) -> dict[str, Any]:
    """Only what was said on the command line: the rest is the environment's, then the default."""
    return {name: value for name, value in values.items() if value is not None}


def _options(values: dict[str, Any]) -> list[str]:
    return [part for name, value in _given(**values).items() for part in (f"--{name}", str(value))]


def _configure_log() -> None:
    from service.log import configure

    configure(LogSettings().level)


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """What the user can mend (settings, files, checkpoints) is one line, not a traceback."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        typer.echo(f"twigserve: {error}", err=True)
        raise typer.Exit(2) from error


if __name__ == "__main__":
    app()
