"""The speed of the service apart from the model: `python -m loadtest.service_speed [--quick | --pictures]`.

One gateway on one core, workers that answer at once, and load from the other cores. Measures: requests a
second with a JPEG of 640 x 480 and with a PNG of the model's size, where the decoders (processes of their
own) share the gateway's core and where they do not; what processor time each part takes for it; the latency
that the service adds at half that load; what an idle fleet costs Redis; whether memory grows; and throughput
over worker counts. Believe it on an otherwise idle machine only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from loadtest.http_load import Load, Outcome, describe_request
from loadtest.stage import GATEWAY_CORES, Stage, elsewhere, stage
from loadtest.stub_workers import PICTURE_PX

AT_ONCE = 16
FLEET_S = 10.0
SAMPLE = Path(__file__).resolve().parent.parent / "docs/samples/dog.png"
TARGETS = {
    "jpeg_per_s": 200,
    "png_per_s": 700,
    "added_p50_ms": 8,
    "added_p99_ms": 25,
    "idle_commands_per_s": 200,
}


@dataclass(frozen=True)
class Plan:
    requests: int
    soak: int = 0
    workers: tuple[int, ...] = ()
    fleet: int = 0


FULL = Plan(requests=3_000, soak=100_000, workers=(1, 2, 4, 8, 16, 32), fleet=50)
QUICK = Plan(requests=500, soak=10_000, workers=(1, 4, 32), fleet=50)
PICTURES = Plan(requests=1_000)


def pictures() -> dict[str, bytes]:
    """Requests by the name of their picture."""
    with Image.open(SAMPLE) as sample:
        photo = sample.convert("RGB")
    files = {
        "jpeg": (photo.resize((640, 480)), "JPEG", {"quality": 85}),
        "png": (photo.resize((PICTURE_PX, PICTURE_PX)), "PNG", {}),
    }
    requests = {}
    for name, (image, kind, options) in files.items():
        data = BytesIO()
        image.save(data, kind, **options)
        requests[name] = describe_request(data.getvalue(), f"image/{kind.lower()}", max_tokens="1")
    return requests


def summary(outcome: Outcome) -> dict[str, Any]:
    return {
        "per_s": round(outcome.per_s, 1),
        "ms": {"p50": outcome.ms(0.5), "p95": outcome.ms(0.95), "p99": outcome.ms(0.99)},
        "errors": len(outcome.errors),
    }


async def throughput(on: Stage, request: bytes, plan: Plan) -> dict[str, Any]:
    """cpu_ms: processor time a request, by part. gateway_alone_per_s: reckoned from the gateway's own: what
    one core would take if that core did nothing else, and the rest of the service kept up.
    """
    before = on.cpu_s()
    outcome = await Load(on.port, request).closed(plan.requests, AT_ONCE)
    after = on.cpu_s()
    each = {part: round(1000 * (after[part] - before[part]) / plan.requests, 3) for part in after}
    alone = round(1000 / each["gateway"], 1) if each["gateway"] else 0.0
    return summary(outcome) | {"cpu_ms": each, "gateway_alone_per_s": alone}


async def picture(on: Stage, request: bytes, plan: Plan) -> dict[str, Any]:
    """With the decoders on the gateway's core and elsewhere; the added latency at half the first's load."""
    await Load(on.port, request).closed(plan.requests // 5, AT_ONCE)  # children started, code warm
    on.decoders_on(GATEWAY_CORES)
    shared = await throughput(on, request, plan)
    half = shared["per_s"] / 2
    calm = await Load(on.port, request).opened(plan.requests, half)
    on.decoders_on(elsewhere())
    apart = await throughput(on, request, plan)
    on.decoders_on(GATEWAY_CORES)
    return {
        "decoders_on_the_gateways_core": shared,
        "half_load": summary(calm) | {"offered_per_s": round(half, 1)},
        "decoders_elsewhere": apart,
    }


async def measure(plan: Plan) -> dict[str, Any]:
    requests = pictures()
    report: dict[str, Any] = {"machine": platform.processor() or platform.machine(), "targets": TARGETS}
    with stage() as on:
        with on.workers(4):
            for name, request in requests.items():
                report[name] = await picture(on, request, plan)
                say(name, report[name])
            if plan.soak:
                report["memory"] = await soak(on, requests["png"], plan)
                say("memory", report["memory"])
        report["workers"] = [await at_workers(on, requests["png"], plan, count) for count in plan.workers]
        if plan.fleet:
            report["idle"] = await idle_fleet(on, plan.fleet)
            say("idle fleet", report["idle"])
    return report


async def at_workers(on: Stage, request: bytes, plan: Plan, count: int) -> dict[str, Any]:
    with on.workers(count):
        await Load(on.port, request).closed(plan.requests // 10, AT_ONCE)
        commands = on.commands()
        measured = await throughput(on, request, plan)
        each = (on.commands() - commands) / plan.requests
    row = {"workers": count, **measured, "redis_commands_per_request": round(each, 1)}
    say("workers", row)
    return row


async def soak(on: Stage, request: bytes, plan: Plan) -> dict[str, Any]:
    """Memory after each tenth of the requests: flat after the first."""
    rss = []
    for _ in range(10):
        await Load(on.port, request).closed(plan.soak // 10, AT_ONCE)
        rss.append(on.gateway_rss_mb())
    return {"requests": plan.soak, "rss_mb": rss, "growth_mb": round(rss[-1] - rss[0], 1)}


async def idle_fleet(on: Stage, workers: int) -> dict[str, Any]:
    with on.workers(workers):
        before = on.commands()
        await asyncio.sleep(FLEET_S)
        return {"workers": workers, "commands_per_s": round((on.commands() - before) / FLEET_S, 1)}


def say(*parts: object) -> None:
    print(*parts, flush=True)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    options.add_argument("--quick", action="store_true", help="a tenth of the requests")
    options.add_argument("--pictures", action="store_true", help="the two pictures alone: half a minute")
    said = options.parse_args()
    plan = PICTURES if said.pictures else QUICK if said.quick else FULL
    print(json.dumps(asyncio.run(measure(plan))))


if __name__ == "__main__":
    main()
