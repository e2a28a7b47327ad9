"""Both sides of the broker on a real Redis, and jobs to send through it."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from service.broker.base import Lease
from service.broker.redis import RedisGatewayBroker, RedisWorkerBroker
from service.embedded_redis import EmbeddedRedis
from service.protocol import Event, Job, TokenData
from service.settings import RedisSettings
from tests.redis_fixture import redis_server, redis_settings, short_settings  # noqa: F401

WorkerFactory = Callable[..., RedisWorkerBroker]


@pytest.fixture
async def gateway(redis_settings: RedisSettings) -> AsyncIterator[RedisGatewayBroker]:  # noqa: F811
    broker = RedisGatewayBroker(redis_settings)
    await broker.start()
    yield broker
    await broker.close()


@pytest.fixture
def new_worker(redis_settings: RedisSettings) -> Iterator[WorkerFactory]:  # noqa: F811
    """new_worker(lease_s=0.3): settings can be overridden."""
    brokers: list[RedisWorkerBroker] = []

    def build(**overrides: Any) -> RedisWorkerBroker:
        brokers.append(RedisWorkerBroker(redis_settings.model_copy(update=overrides)))
        return brokers[-1]

    yield build
    for broker in brokers:
        broker.close()


@pytest.fixture
def worker(new_worker: WorkerFactory) -> RedisWorkerBroker:
    return new_worker()


@contextlib.asynccontextmanager
async def own_server() -> AsyncIterator[tuple[EmbeddedRedis, RedisGatewayBroker, RedisWorkerBroker]]:
    with EmbeddedRedis() as server:
        settings = short_settings(server.url)
        gateway, worker = RedisGatewayBroker(settings), RedisWorkerBroker(settings)
        await gateway.start()
        try:
            yield server, gateway, worker
        finally:
            await gateway.close()
            worker.close()


def make_job(**fields: Any) -> Job:
    return Job(
        **{"id": uuid.uuid4().hex, "created_at": time.time(), "prompt": "Describe the image."} | fields
    )


def token(attempt: int, seq: int, *token_ids: int) -> Event:
    data = TokenData(text="x" * len(token_ids), token_ids=token_ids, drafted=(False,) * len(token_ids))
    return Event(seq=seq, attempt=attempt, type="token", data=data.model_dump(mode="json"))


def done(attempt: int, seq: int) -> Event:
    return Event(seq=seq, attempt=attempt, type="done", data={"text": "x", "token_ids": [1]})


def claim_one(broker: RedisWorkerBroker, within_s: float = 20.0) -> Any:
    """Polls like a worker until a job is there (a lease runs out by itself, nothing announces it)."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        batch = broker.claim(1)
        if batch.claims:
            return batch.claims[0]
        broker.wait_for_work(0.05)
    raise AssertionError("no job came")


def begun(broker: RedisWorkerBroker) -> Lease:
    """A claim, as a worker has it that begins its job."""
    lease: Lease = claim_one(broker).lease
    assert broker.renew([lease]) == ([], [])
    return lease
