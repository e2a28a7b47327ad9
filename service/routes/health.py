"""`/livez`, `/readyz`, `/metrics`: what orchestrators and Prometheus ask.

Invariant: `/livez` depends on nothing but this process; `/readyz` is 200 exactly while a job could run.
A load balancer that drops what is not ready asks `/readyz?without_workers=true`: no worker is no gateway's
fault, and only a gateway can say so (503 with Retry-After) and hand out the results of earlier jobs.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field

from service.errors import Unavailable
from service.gateway import Gateway
from service.metrics import render_metrics
from service.schemas import error_responses

LOOK_S = 1.0  # a scrape must not wait for a queue that hangs: it has little time itself
router = APIRouter(tags=["health"])

METRICS: dict[int | str, dict[str, Any]] = {
    200: {"description": "Text exposition.", "content": {"text/plain": {"schema": {"type": "string"}}}}
}


class Alive(BaseModel):
    status: str = Field("alive", examples=["alive"])


class Ready(BaseModel):
    status: str = Field("ready", examples=["ready"])
    workers: int = Field(examples=[1])
    models: list[str] = Field(examples=[["twigvlm-embedded"]])


@router.get("/livez", summary="Is this process alive?")
async def livez() -> Alive:
    return Alive(status="alive")


@router.get(
    "/readyz",
    summary="Is the queue reachable and a worker ready?",
    responses=error_responses(400, 503),
)
async def readyz(
    request: Request,
    without_workers: Annotated[bool, Query(description="Ask for the queue alone.")] = False,
) -> Ready:
    gateway: Gateway = request.app.state.gateway
    _, workers = await gateway.ready(without_workers=without_workers)
    models = sorted({worker.card.model_id for worker in workers})
    return Ready(status="ready", workers=len(workers), models=models)


@router.get("/metrics", summary="Prometheus metrics", response_class=Response, responses=METRICS)
async def metrics(request: Request) -> Response:
    gateway: Gateway = request.app.state.gateway
    with contextlib.suppress(Unavailable, TimeoutError):  # the gauges keep what they saw last
        async with asyncio.timeout(LOOK_S):
            gateway.metrics.see_queue(*await gateway.look())
    gateway.metrics.ended_waiting(gateway.broker.take_ended_waiting())
    body = await render_metrics(gateway.metrics.registry, gateway.settings.worker_metrics_urls)
    return Response(body, media_type=CONTENT_TYPE_LATEST)
