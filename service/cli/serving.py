"""The commands that serve: everything on one machine, or one gateway, or one worker."""

from __future__ import annotations

import sys
import tempfile
from typing import Annotated

import typer

from service.cli.groups import grouped
from service.cli.options import (
    BatchOptions,
    EngineOptions,
    RedisUrl,
    command_line,
    configure_log,
    given,
    plain_errors,
    redis,
)
from service.settings import GatewaySettings, WorkerSettings, explicit_redis_url

Host = Annotated[str | None, typer.Option(help="Address to listen on; 127.0.0.1 by default.")]
Port = Annotated[int | None, typer.Option(help="8000 by default; 0 takes a free one.")]


@grouped
def serve(
    host: Host = None,
    port: Port = None,
    workers: Annotated[int, typer.Option(min=1, metavar="N", help="Worker processes.")] = 1,
    redis_url: RedisUrl = None,
    *,
    engine: EngineOptions,
    batch: BatchOptions,
) -> None:
    """The whole service on this machine: Redis (if none is given), workers, gateway."""
    from service.launcher import Launcher, ServePlan

    with plain_errors():
        configure_log()
        settings, each = GatewaySettings(**given(host=host, port=port)), WorkerSettings()
        if workers > 1 and each.worker_id is not None:
            raise ValueError(f"TWIGSERVE_WORKER_WORKER_ID names one worker, and there are to be {workers}")
        redis_args: tuple[str, ...] | None = ("--redis-url", redis_url) if redis_url else None
        if redis_args is None and explicit_redis_url():
            redis_args = ()
        ourselves = (sys.executable, "-m", "service.cli")
        plan = ServePlan(
            gateway_command=(*ourselves, "gateway"),
            worker_command=(*ourselves, "worker", *command_line(engine.said() | batch.said())),
            host=settings.host,
            port=settings.port,
            workers=workers,
            redis_args=redis_args,
            drain_s=max(each.drain_s, settings.shutdown_s),
        )
        launcher = Launcher(plan)
    raise typer.Exit(launcher.run())


def gateway(
    host: Host = None,
    port: Port = None,
    redis_url: RedisUrl = None,
    worker_metrics_url: Annotated[
        list[str] | None, typer.Option(metavar="URL", help="Appended to /metrics; repeatable.")
    ] = None,
) -> None:
    """The HTTP gateway alone."""
    with plain_errors():
        urls = tuple(worker_metrics_url) if worker_metrics_url else None
        said = given(host=host, port=port, worker_metrics_urls=urls)
        settings = GatewaySettings(redis=redis(redis_url), **said)
        configure_log()
        from service import collector
        from service.app import create_app
        from service.draining import DrainingServer
        from service.http_server import server_config
        from service.stop_signals import on_stop

        tempfile.gettempdir()  # decoders meet their gateway there, and large bodies wait
        app = create_app(settings)
        collector.settle()
        server = DrainingServer(server_config(app, settings), app.state.gateway)
    on_stop(server.handle_exit)  # uvicorn raises again what ended it; a drained gateway ends well
    server.run()


@grouped
def worker(
    redis_url: RedisUrl = None,
    verify: Annotated[
        bool | None, typer.Option("--verify", help="Check the answers first; not ready if they are wrong.")
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(metavar="PORT", help="Of this worker's own /metrics.")
    ] = None,
    *,
    engine: EngineOptions,
    batch: BatchOptions,
) -> None:
    """One worker: an engine that takes jobs from the queue."""
    with plain_errors():
        said = engine.said() | batch.said() | given(verify=verify, metrics_port=metrics_port)
        settings = WorkerSettings(redis=redis(redis_url), **said)
        configure_log()
        from service.worker import run_worker

        run_worker(settings)
