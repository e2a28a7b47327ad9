"""Fixtures: a real Redis that this test session started, and settings that point at a fresh key prefix in it.

Use from a conftest: `from tests.redis_fixture import redis_server, redis_settings  # noqa: F401`.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from pydantic import SecretStr

from service.embedded_redis import EmbeddedRedis
from service.settings import RedisSettings


@pytest.fixture(scope="session")
def redis_server() -> Iterator[EmbeddedRedis]:
    """One server for the session; never stop it in a test (start an EmbeddedRedis of your own for that)."""
    with EmbeddedRedis() as server:
        yield server


@pytest.fixture
def redis_settings(redis_server: EmbeddedRedis) -> RedisSettings:
    """Every test has a queue of its own; leases are short so that fault tests are quick."""
    return short_settings(redis_server.url)


def short_settings(url: str) -> RedisSettings:
    return RedisSettings(
        url=SecretStr(url),
        shard=f"t{uuid.uuid4().hex[:12]}",
        lease_s=2.0,
        connect_timeout_s=5.0,
        command_timeout_s=10.0,
        backoff_max_s=0.2,
    )
