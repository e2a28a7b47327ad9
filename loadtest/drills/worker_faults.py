"""Workers that are killed, stall, or are handed a job that kills them."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

from loadtest.drills.clients import Client, Outcome
from loadtest.drills.drill import Report, drill
from loadtest.drills.servers import Server, plain_redis
from loadtest.drills.stage import LEASE_S, Stage, until

SHARE = 8  # requests a worker takes at once


async def service(
    folder: Path, stages: list[Stage], *worker_faults: str, server: Server | None = None, workers: int = 2
) -> Stage:
    """One gateway; the faults are the first worker's."""
    server = server or plain_redis(folder)
    await server.start()
    stage = Stage(folder, server.url)
    stage.servers.append(server)
    stages.append(stage)
    stage.add_gateway()
    for number in range(workers):
        stage.add_worker(*(worker_faults if number == 0 else ()))
    await stage.ready()
    return stage


def mixed(client: Client, count: int, max_tokens: int) -> list[asyncio.Task[Outcome]]:
    """Streams, whole answers and jobs in the background, all at once."""
    kinds = (client.stream, client.plain, client.background)
    return [
        asyncio.create_task(kinds[number % 3](f"request {number}", max_tokens)) for number in range(count)
    ]


def streams(client: Client, count: int, max_tokens: int) -> list[asyncio.Task[Outcome]]:
    return [asyncio.create_task(client.stream(f"stream {number}", max_tokens)) for number in range(count)]


async def tokens_flow(client: Client, count: int) -> None:
    async def enough() -> bool:
        return client.tokens_seen >= count

    await until(enough)


@drill()
async def kill_worker_plain(folder: Path, stages: list[Stage]) -> Report:
    """kill -9 of one of two workers while each computes whole answers."""
    stage = await service(folder, stages)
    client = stage.client()
    asked = [asyncio.create_task(client.plain(f"plain {number}", 100)) for number in range(2 * SHARE)]
    await stage.busy("w0")
    await stage.busy("w1")
    stage.workers["w0"].kill()
    return Report(await asyncio.gather(*asked))


@drill()
async def kill_worker_streaming(folder: Path, stages: list[Stage]) -> Report:
    """kill -9 of one of two workers in the middle of its streams."""
    stage = await service(folder, stages)
    client = stage.client()
    asked = streams(client, 2 * SHARE, 100)
    await tokens_flow(client, 200)
    stage.workers[await stage.anyone_busy()].kill()
    report = Report(await asyncio.gather(*asked))
    attempts = {
        outcome.check.last_id[0] for outcome in report.outcomes if outcome.check and outcome.check.last_id
    }
    report.need("2" in attempts, "no stream was continued by another worker")
    return report


@drill()
async def kill_worker_in_prefill(folder: Path, stages: list[Stage]) -> Report:
    """kill -9 of the only worker before any of its requests has a token; another one comes up."""
    stage = await service(folder, stages, "--prefill-s=30", workers=1)
    client = stage.client()
    asked = mixed(client, SHARE, 30)
    await stage.busy("w0")
    stage.workers["w0"].kill()
    stage.add_worker()
    report = Report(await asyncio.gather(*asked))
    report.need(client.tokens_seen > 0, "nothing was streamed")
    return report


@drill()
async def kill_worker_before_finish(folder: Path, stages: list[Stage]) -> Report:
    """A worker is killed when its first answer is whole, before the queue has been told."""
    return await killed_at_finish(folder, stages, "before-finish")


@drill(quick=True)
async def kill_worker_after_finish(folder: Path, stages: list[Stage]) -> Report:
    """A worker is killed when the queue has its first answer, before it has heard so."""
    return await killed_at_finish(folder, stages, "after-finish")


async def killed_at_finish(folder: Path, stages: list[Stage], when: str) -> Report:
    stage = await service(folder, stages, f"--die={when}")
    client = stage.client()
    asked = mixed(client, 2 * SHARE, 40)
    report = Report(await asyncio.gather(*asked))
    report.need(not stage.workers["w0"].alive(), "the worker was not killed")
    return report


@drill(quick=True)
async def stalled_worker(folder: Path, stages: list[Stage]) -> Report:
    """A worker stops (SIGSTOP) past its leases and comes back: it is fenced and writes nothing."""
    stage = await service(folder, stages)
    client = stage.client()
    asked = streams(client, 2 * SHARE, 100)
    await tokens_flow(client, 100)
    stalled = stage.workers[await stage.anyone_busy()]
    stalled.send(signal.SIGSTOP)
    await asyncio.sleep(1.5 * LEASE_S)
    stalled.send(signal.SIGCONT)
    report = Report(await asyncio.gather(*asked))
    report.need(stalled.alive(), "the worker did not survive being fenced")
    report.outcomes = [*report.outcomes, *await asyncio.gather(*streams(client, 2 * SHARE, 20))]
    return report


@drill(quick=True)
async def poison_job(folder: Path, stages: list[Stage]) -> Report:
    """A job that kills every worker that takes it: dead letter, an error for its client, the fleet lives."""
    stage = await service(folder, stages, workers=4)
    client = stage.client()
    innocent = mixed(client, SHARE, 60)
    poison = asyncio.create_task(client.stream("kill the worker", 10))
    report = Report(await asyncio.gather(*innocent, poison), errors={"kill the worker": "delivery_limit"})
    dead = sum(not worker.alive() for worker in stage.workers.values())
    report.need(dead == 3, f"{dead} workers died of it, not 3")
    report.need((await stage.broker.queue_stats()).dead == 1, "it is not among the dead letters")
    return report


@drill()
async def kill_embedded_model(folder: Path, stages: list[Stage]) -> Report:
    """The embedded model, killed in mid-stream: the answer is the undisturbed one's, token for token."""
    server = plain_redis(folder)
    await server.start()
    stage = Stage(folder, server.url)
    stage.servers.append(server)
    stages.append(stage)
    stage.add_gateway()
    for _ in range(2):
        stage.add_worker(stub=False, dtype="float32", threads="1")
    await stage.ready()
    client = stage.client()
    prompt = "Describe the image."
    calm = await client.stream(prompt, 96)
    seen = client.tokens_seen
    broken = asyncio.create_task(client.stream(prompt, 96))
    await tokens_flow(client, seen + 8)
    owners = [info.worker_id for info in await stage.broker.workers() if info.free_slots < info.max_slots]
    for owner in owners:
        stage.workers[owner].kill()
    outcome = await broken
    report = Report([calm, outcome], tokens={prompt: calm.check.token_ids if calm.check else []})
    report.need(len(owners) == 1, f"{len(owners)} workers had the one stream")
    last_id = outcome.check.last_id if outcome.check else None
    report.need(last_id is not None and last_id.startswith("2-"), f"the answer ended as {last_id}")
    return report
