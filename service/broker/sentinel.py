"""Clients that ask the sentinels for the master whenever they open a connection.

Invariant: a connection is only ever made to what the sentinels call the master; one that meets a demoted
master is dropped (redis-py does that). Knows nothing of jobs.
"""

from __future__ import annotations

from typing import Any

import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel

from service.redis_url import SentinelUrl


class _WaitingPool(redis.asyncio.sentinel.SentinelConnectionPool, redis.asyncio.BlockingConnectionPool):
    """redis-py has a pool that knows sentinels and one that waits for a free connection; this is both."""


def sentinel_client(url: SentinelUrl, options: dict[str, Any]) -> redis.Redis:
    sentinel: Any = redis.sentinel  # untyped
    manager = sentinel.Sentinel(list(url.sentinels), sentinel_kwargs=_sentinel_options(url, options))
    pool = sentinel.SentinelConnectionPool(url.master, manager, **_redis_options(url, options))
    return redis.Redis(connection_pool=pool)


def async_sentinel_client(url: SentinelUrl, options: dict[str, Any]) -> redis.asyncio.Redis:
    sentinel: Any = redis.asyncio.sentinel  # untyped
    manager = sentinel.Sentinel(list(url.sentinels), sentinel_kwargs=_sentinel_options(url, options))
    pool_class: Any = _WaitingPool
    return redis.asyncio.Redis.from_pool(pool_class(url.master, manager, **_redis_options(url, options)))


async def close_sentinels(client: redis.asyncio.Redis) -> None:
    pool = client.connection_pool
    if isinstance(pool, _WaitingPool):
        for sentinel in pool.sentinel_manager.sentinels:
            await sentinel.aclose()


def _redis_options(url: SentinelUrl, options: dict[str, Any]) -> dict[str, Any]:
    own = {"db": url.db, "username": url.username, "password": url.password, "ssl": url.tls}
    return options | own


def _sentinel_options(url: SentinelUrl, options: dict[str, Any]) -> dict[str, Any]:
    connect_s = options["socket_connect_timeout"]
    # Always one: a sentinel that says nothing must not keep the others from being asked.
    timeouts = {"socket_connect_timeout": connect_s, "socket_timeout": options["socket_timeout"] or connect_s}
    return timeouts | {"password": url.sentinel_password, "ssl": url.tls}
