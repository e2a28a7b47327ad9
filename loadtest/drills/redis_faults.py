"""Redis that dies, comes back with or without its data, fails over, or is full."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path

import httpx
import redis

from loadtest.drills.clients import Outcome
from loadtest.drills.drill import Report, drill
from loadtest.drills.servers import (
    Sentinel,
    Server,
    persistent_redis,
    plain_redis,
    replica_of,
    sentinel_url,
)
from loadtest.drills.stage import Stage, until
from loadtest.drills.worker_faults import SHARE, mixed, service, streams, tokens_flow

FAST_S = 5.0  # how long a refusal may take, on a busy machine


@drill()
async def redis_restart_aof(folder: Path, stages: list[Stage]) -> Report:
    """kill -9 of Redis, started again at once from its append-only file."""
    server = persistent_redis(folder)
    stage = await service(folder, stages, server=server)
    client = stage.client()
    asked = [*mixed(client, SHARE, 100), *streams(client, SHARE, 100)]
    await tokens_flow(client, 150)
    server.kill()
    await server.start()
    return Report(await asyncio.gather(*asked))


@drill()
async def redis_down_30s(folder: Path, stages: list[Stage]) -> Report:
    """Redis is away for 30 s: fast 503s meanwhile, then everything accepted goes on."""
    server = persistent_redis(folder)
    stage = await service(folder, stages, server=server)
    client, late = stage.client(), stage.client()
    asked = [*mixed(client, SHARE, 100), *streams(client, SHARE, 100)]
    await tokens_flow(client, 150)
    server.kill()
    came_late = mixed(late, 3, 20)
    health = await watch_health(stage.gateway_urls[0], 30.0)
    await server.start()
    back_at = time.monotonic()
    report = Report(await asyncio.gather(*asked, *came_late))
    report.need(health == {("/livez", 200), ("/readyz", 503)}, f"health was {sorted(health)}")
    refusals = [refusal for task in came_late for refusal in task.result().refusals if refusal.at < back_at]
    need_fast_refusals(report, refusals)
    return report


async def watch_health(url: str, seconds: float) -> set[tuple[str, int]]:
    seen = set()
    end = time.monotonic() + seconds
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=10) as http:
        await asyncio.sleep(1)  # what was looked up just before may be answered from that
        while time.monotonic() < end:
            for path in ("/livez", "/readyz"):
                seen.add((path, (await http.get(path)).status_code))
            await asyncio.sleep(0.5)
    return seen


def need_fast_refusals(report: Report, refusals: list) -> None:  # type: ignore[type-arg]
    report.need(bool(refusals), "nothing was refused")
    slow = max((refusal.seconds for refusal in refusals), default=0.0)
    report.need(slow < FAST_S, f"a refusal took {slow:.1f} s")
    report.need(all(refusal.status == 503 for refusal in refusals), "a refusal was no 503")
    report.need(all(refusal.retry_after for refusal in refusals), "a refusal had no Retry-After")


@drill(quick=True)
async def redis_lost_its_data(folder: Path, stages: list[Stage]) -> Report:
    """kill -9 of a Redis without persistence: the gateways put every accepted job back, streams go on."""
    server = plain_redis(folder)
    stage = await service(folder, stages, server=server)
    stage.add_gateway()
    await stage.ready()
    client = stage.client()
    asked = [*mixed(client, 3 * SHARE, 100), *streams(client, SHARE, 100)]
    await tokens_flow(client, 100)

    async def all_accepted() -> bool:
        return len(client.jobs) >= 2 * SHARE  # whole answers say so only at their end

    await until(all_accepted)
    server.kill()
    await server.start()
    return Report(await asyncio.gather(*asked))


@drill(quick=True)
async def sentinel_failover(folder: Path, stages: list[Stage]) -> Report:
    """kill -9 of the master of two replicas, under three sentinels; every acceptance is on a replica."""
    master = plain_redis(folder)
    servers: list[Server] = [master, replica_of(master, folder), replica_of(master, folder)]
    for server in servers:
        await server.start()
    sentinels = [Sentinel(folder, master, 2) for _ in range(3)]
    for sentinel in sentinels:
        await sentinel.start()
    await until(lambda: all_known(sentinels))
    stage = Stage(folder, sentinel_url(sentinels), min_replicas=1)
    stage.servers += [*servers, *sentinels]
    stages.append(stage)
    stage.add_gateway()
    stage.add_worker()
    stage.add_worker()
    await stage.ready()
    client = stage.client()
    asked = [*mixed(client, SHARE, 150), *streams(client, SHARE, 150)]
    await tokens_flow(client, 150)
    master.kill()
    later = mixed(client, SHARE, 20)
    report = Report(await asyncio.gather(*asked, *later))
    report.need(
        any(outcome.refusals for outcome in report.outcomes[2 * SHARE :]), "the master was not missed"
    )
    return report


async def all_known(sentinels: list[Sentinel]) -> bool:
    return all(sentinel.others_known() == len(sentinels) - 1 for sentinel in sentinels)


@drill(quick=True)
async def full_redis(folder: Path, stages: list[Stage]) -> Report:
    """noeviction and no memory left: new requests get 503 and leave nothing behind, accepted ones end."""
    server = plain_redis(folder, "--maxmemory-policy", "noeviction")
    stage = await service(folder, stages, server=server)
    client, late = stage.client(), stage.client()
    asked = streams(client, SHARE, 200)

    async def all_accepted() -> bool:
        return len(client.jobs) == SHARE

    await until(all_accepted)
    with server.client() as admin:
        known = jobs_in(admin)
        admin.config_set("maxmemory", "1mb")
        came_late = mixed(late, SHARE, 20)
        accepted = await asyncio.gather(*asked)
        await until(lambda: still_refused(came_late))
        report = Report(accepted)
        report.need(jobs_in(admin) == known, "a refused job left something behind")
        report.need(admin.xlen("{q}:jobs") == 0, "entries are left in the queue")
        admin.config_set("maxmemory", "0")
    report.outcomes = [*accepted, *await asyncio.gather(*came_late)]
    need_fast_refusals(report, [refusal for task in came_late for refusal in task.result().refusals])
    return report


def jobs_in(admin: redis.Redis) -> set[bytes]:
    """Names of everything that a job owns."""
    return {key for kind in ("job", "idempotency") for key in admin.scan_iter(f"{{q}}:{kind}:*")}


def tried(admin: redis.Redis) -> set[tuple[bytes, bytes]]:
    """As `jobs_in`, each key with the job that has it: what is tried again is another job."""
    return {(name, name if b":job:" in name else admin.hget(name, "job")) for name in jobs_in(admin)}  # type: ignore[misc]


async def still_refused(tasks: list[asyncio.Task[Outcome]]) -> bool:
    await asyncio.sleep(1.0)  # so that each has been refused more than once
    return not any(task.done() for task in tasks)


@drill(quick=True)
async def accepted_by_a_replica(folder: Path, stages: list[Stage]) -> Report:
    """A 202 only once a replica has the job; without a replica 503, and nothing is left of the job."""
    master = plain_redis(folder)
    await master.start()
    stage = Stage(folder, master.url, min_replicas=1, replica_timeout_s=0.3)
    stage.servers.append(master)
    stages.append(stage)
    stage.add_gateway()
    stage.add_worker("--step-s=0.2")
    await stage.ready()
    client = stage.client()
    asked = [asyncio.create_task(client.background(f"job {number}", 40)) for number in range(4)]
    await asyncio.sleep(1.5)
    report = Report([])
    with master.client() as admin:
        refused = tried(admin)

        async def nothing_left() -> bool:
            return not refused & tried(admin)

        await until(nothing_left)
        report.need(not client.jobs, "a job was accepted")
    replica = replica_of(master, folder)
    await replica.start()
    stage.servers.append(replica)

    async def all_accepted() -> bool:
        return len(client.jobs) == len(asked)

    await until(all_accepted)
    master.kill()
    with contextlib.closing(replica.client()) as copy:
        held = {name.decode().rpartition(":")[2] for name in jobs_in(copy)}
    for task in asked:
        task.cancel()
    await asyncio.gather(*asked, return_exceptions=True)
    kept = [{"id": job} if job in held else None for job in client.jobs]
    report.outcomes = [Outcome(job, 0, answer=answer) for job, answer in zip(client.jobs, kept, strict=True)]
    report.tokens = {job: [] for job in client.jobs}
    return report
