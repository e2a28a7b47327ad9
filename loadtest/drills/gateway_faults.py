"""Gateways that are killed or told to stop, and workers that are told to stop, under load."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

from loadtest.drills.drill import Report, drill
from loadtest.drills.stage import Stage
from loadtest.drills.worker_faults import SHARE, mixed, service, streams, tokens_flow

DRAIN_S = 3.0
LEAVING_S = 30.0  # to take leave of all else, on a busy machine


@drill(quick=True)
async def kill_gateway(folder: Path, stages: list[Stage]) -> Report:
    """kill -9 of one of two gateways: its jobs end, are readable, and streams go on at the other one."""
    stage = await service(folder, stages)
    stage.add_gateway()
    await stage.ready()
    client = stage.client()
    asked = [*mixed(client, SHARE, 80), *streams(client, SHARE, 80)]
    await tokens_flow(client, 150)
    stage.gateways[0].kill()
    report = Report(await asyncio.gather(*asked))
    report.need(any(outcome.breaks for outcome in report.outcomes), "no client noticed")
    return report


@drill()
async def drain_worker(folder: Path, stages: list[Stage]) -> Report:
    """SIGTERM to one of two workers under load; what it cannot finish in time the other one does."""
    stage = await service(folder, stages, workers=1)
    leaving = stage.add_worker(drain_s="1")
    await stage.ready()
    client = stage.client()
    asked = mixed(client, 3 * SHARE, 150)
    await stage.busy("w1")
    await tokens_flow(client, 50)
    began = time.monotonic()
    leaving.send(signal.SIGTERM)
    code = await asyncio.to_thread(leaving.wait, 120)
    took_s = time.monotonic() - began
    report = Report(await asyncio.gather(*asked))
    report.need(code == 0, f"the worker left with code {code}")
    report.need(took_s < 1 + LEAVING_S, f"draining took {took_s:.1f} s")
    return report


@drill(quick=True)
async def drain_gateway(folder: Path, stages: list[Stage]) -> Report:
    """SIGTERM to one of two gateways: what ends in time ends, the rest is told where it goes on."""
    stage = await service(folder, stages, workers=2)
    leaving = stage.add_gateway(shutdown_s=DRAIN_S)
    await stage.ready()
    client = stage.client()
    asked = [*mixed(client, SHARE, 60), *streams(client, SHARE, 400)]
    await tokens_flow(client, 50)
    began = time.monotonic()
    leaving.send(signal.SIGTERM)
    code = await asyncio.to_thread(leaving.wait, 120)
    took_s = time.monotonic() - began
    report = Report(await asyncio.gather(*asked))
    report.need(code in (0, -signal.SIGTERM), f"the gateway left with code {code}")
    report.need(took_s < DRAIN_S + LEAVING_S, f"draining took {took_s:.1f} s of {DRAIN_S:g}")
    return report
