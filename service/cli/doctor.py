"""`twigserve doctor`: what is missing on this machine, in plain words. Exit 0 if nothing is, else 1."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.options import Twig, Vlm, given, plain_errors
from service.settings import GatewaySettings, WorkerSettings, explicit_redis_url

if TYPE_CHECKING:
    from service.doctor import Finding

MARKS = {"ok": ("ok", "green"), "note": ("note", "yellow"), "missing": ("MISSING", "red")}


def doctor(
    vlm: Vlm = None,
    twig: Twig = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """What is missing on this machine to serve? Exit 0 if nothing is, else 1."""
    with plain_errors():
        settings, gateway = WorkerSettings(**given(vlm=vlm, twig=twig)), GatewaySettings()
    findings = list(_findings(settings, gateway))
    well = not any(finding.verdict == "missing" for finding in findings)
    if as_json:
        typer.echo(json.dumps({"ok": well, "checks": [asdict(finding) for finding in findings]}))
    else:
        for finding in findings:
            _print(finding)
        typer.echo("Nothing is missing: `twigserve serve` should start." if well else "Something is missing.")
    raise typer.Exit(0 if well else 1)


def _findings(settings: WorkerSettings, gateway: GatewaySettings) -> Iterator[Finding]:
    from service import doctor as look
    from service.embedded_redis import find_server

    yield look.python()
    installed = look.packages()
    yield installed
    yield look.cpu()
    if installed.verdict == "ok":
        yield from _engine_findings(settings)
    yield look.redis_server(find_server, explicit_redis_url())
    yield look.port(gateway)
    if gateway.keys_file is not None:
        yield look.keys(gateway.keys_file)


def _engine_findings(settings: WorkerSettings) -> Iterator[Finding]:
    from model.machine import checkpoint_bytes, torch_facts
    from service import doctor as look

    facts = torch_facts()
    yield look.gpu(facts.gpus, facts.cuda_build, facts.auto_dtype, settings.device)
    if not facts.gpus:
        yield look.kernels(facts.kernels)
    try:
        weights_bytes = checkpoint_bytes(settings.vlm, settings.twig)
    except (OSError, ValueError) as error:
        yield look.Finding("weights", "missing", str(error), "Fetch the checkpoint's files again.")
        return
    yield look.Finding("weights", "ok", f"{settings.vlm}, {weights_bytes / 2**20:.0f} MiB")
    yield look.memory(weights_bytes, look.available_bytes())


def _print(finding: Finding) -> None:
    mark, colour = MARKS[finding.verdict]
    typer.echo(f"{typer.style(f'{mark:8}', fg=colour)}{finding.name:10}{finding.detail}")
    if finding.advice:
        typer.echo(f"{'':18}{finding.advice}")
