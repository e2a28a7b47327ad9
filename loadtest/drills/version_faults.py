"""Processes that disagree about the time, or come from different versions."""

from __future__ import annotations

import asyncio
from pathlib import Path

from loadtest.drills.clients import Client
from loadtest.drills.drill import Report, drill
from loadtest.drills.servers import plain_redis
from loadtest.drills.stage import Stage
from loadtest.drills.worker_faults import SHARE, mixed, streams


@drill()
async def clock_skew(folder: Path, stages: list[Stage]) -> Report:
    """Gateways and workers whose wall clocks are hours apart: no job expires early, none waits for ever."""
    server = plain_redis(folder)
    await server.start()
    stage = Stage(folder, server.url)
    stage.servers.append(server)
    stages.append(stage)
    for skew_s in (-3600, 3600):
        stage.add_gateway(f"--clock-skew-s={skew_s}")
    for skew_s in (7200, -7200):
        stage.add_worker(f"--clock-skew-s={skew_s}")
    await stage.ready()
    client = stage.client()
    asked = [*mixed(client, SHARE, 60), *streams(client, SHARE, 60)]
    stage.workers[await stage.anyone_busy()].kill()
    return Report(await asyncio.gather(*asked))


@drill(quick=True)
async def mixed_versions(folder: Path, stages: list[Stage]) -> Report:
    """Two gateways and three workers, some of a later version: unknown fields are ignored, an unknown wire
    version is refused by name, and a heartbeat nobody can read harms nobody."""
    server = plain_redis(folder)
    await server.start()
    stage = Stage(folder, server.url)
    stage.servers.append(server)
    stages.append(stage)
    stage.add_gateway()
    stage.add_gateway("--novel")
    stage.add_worker()
    stage.add_worker("--novel")
    stage.add_worker("--from-the-future")
    await stage.ready(workers=2)
    client = stage.client()
    asked = [*mixed(client, SHARE, 60), *streams(client, SHARE, 60)]
    report = Report(await asyncio.gather(*asked), errors={"too new": "unreadable_job"})
    stage.add_gateway("--from-the-future")
    await stage.ready(workers=2)
    ahead = Client(stage.gateway_urls[2:], 30.0)
    report.outcomes = [*report.outcomes, await ahead.stream("too new", 20)]
    await ahead.close()
    return report
