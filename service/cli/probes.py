"""Probes for orchestrators: exit 0 if well, 1 if not."""

from __future__ import annotations

from typing import Annotated

import typer

from service.cli.options import plain_errors
from service.settings import WorkerSettings


def check_gateway(
    url: str = "http://127.0.0.1:8000",
    ready: Annotated[
        bool, typer.Option(help="Ask whether it would answer, not only whether it runs.")
    ] = False,
) -> None:
    """Is the gateway alive (or ready)?"""
    from service.probe import gateway_problem

    _verdict(gateway_problem(url, ready=ready))


def check_worker(
    url: str = "http://127.0.0.1:9100/metrics",
    max_age_s: Annotated[float | None, typer.Option(help="How long one round may take.")] = None,
) -> None:
    """Does the worker's main loop turn?"""
    from service.probe import worker_problem

    with plain_errors():
        limit_s = WorkerSettings().stall_s if max_age_s is None else max_age_s
    _verdict(worker_problem(url, limit_s))


def _verdict(problem: str | None) -> None:
    typer.echo(problem or "ok")
    raise typer.Exit(1 if problem else 0)
